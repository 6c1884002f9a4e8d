//! The node image: its size, and what its bootstrapper needs until it waits in a VM.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::{Image, Machine, attest};
use serde::Deserialize;
use service_runtime::Memory;
use test_figures::{Table, mebibytes, time};

use crate::progress::say;

/// The default level of `zstd`.
const LEVEL: i32 = 3;
const WAITING: &str = "node waits to become part of a cluster";

/// What was measured.
pub(crate) struct Figures {
    image: u64,
    compressed: u64,
    boot: Duration,
    pub(crate) bootstrapper: Memory,
}

pub(crate) fn measure() -> Result<Figures> {
    let image = Image::built()?;
    say("compressing the image");
    let compressed = compressed_size(image.disk())?;
    say("booting the image in a VM");
    let (boot, bootstrapper) = boot(&image)?;
    Ok(Figures {
        image: image.disk().metadata()?.len(),
        compressed,
        boot,
        bootstrapper,
    })
}

impl Figures {
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new("Node image", &[""]);
        table.row("disk, without Kubernetes' components", [mebibytes(self.image)]);
        let aim = "aim: under 250 MiB".to_owned();
        table.row("the same, compressed by zstd", [mebibytes(self.compressed), aim]);
        table.row("power-on to waiting bootstrapper, no KVM", [time(self.boot)]);
        table
    }
}

/// How long a new node takes until it waits, and what its bootstrapper says about itself then.
fn boot(image: &Image) -> Result<(Duration, Memory)> {
    let start = Instant::now();
    Machine::new("bench", image.disk()).run(|vm| {
        vm.wait_until("the bootstrapper", |vm| {
            Ok(said_memory(&vm.console()?, WAITING).is_some())
        })?;
        let boot = start.elapsed();
        attest(vm, image.values())?.must_be_affirming()?;
        let memory = said_memory(&vm.console()?, WAITING).context("the console was cut")?;
        Ok((boot, memory))
    })
}

/// What a bootstrapper said on the console about its memory when it reached this state.
pub(crate) fn said_memory(console: &str, state: &str) -> Option<Memory> {
    #[derive(Deserialize)]
    struct Line {
        resident_kib: u64,
        peak_kib: u64,
    }
    let line = console.lines().find(|line| line.contains(state))?;
    let json = &line[line.find('{')?..];
    let line: Line = serde_json::Deserializer::from_str(json).into_iter().next()?.ok()?;
    Some(Memory {
        resident: line.resident_kib,
        peak: line.peak_kib,
    })
}

fn compressed_size(path: &Path) -> Result<u64> {
    let mut encoder = zstd::Encoder::new(Counter(0), LEVEL)?;
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    io::copy(&mut file, &mut encoder)?;
    Ok(encoder.finish()?.0)
}

/// Forgets what is written to it, but for its length.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
