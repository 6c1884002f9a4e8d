//! One boot of the VM.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The guest ends far earlier; a guest that hangs must not hang us.
const DEADLINE: Duration = Duration::from_secs(400);

/// What every boot has in common.
pub(crate) struct Machine {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// What came of a boot.
pub(crate) struct Outcome {
    pub(crate) checks: usize,
    pub(crate) failed: usize,
    /// Whether the guest came to its end and switched itself off.
    pub(crate) ended: bool,
    pub(crate) duration: Duration,
}

impl Outcome {
    pub(crate) fn passed(&self) -> bool {
        self.ended && self.failed == 0 && self.checks > 0
    }
}

impl Machine {
    /// Boots with the given disks, each with its serial number, and reads the console until the guest is off.
    pub(crate) fn boot(&self, chapter: &str, disks: &[(&str, &PathBuf)], log: &Path) -> Result<Outcome> {
        let start = Instant::now();
        let mut qemu = self
            .command(chapter, disks)
            .spawn()
            .context("qemu-system-x86_64 cannot be started")?;
        let console = qemu.stdout.take().context("QEMU has no console")?;
        let (send, lines) = mpsc::channel();
        let reader = thread::spawn(move || {
            BufReader::new(console)
                .split(b'\n')
                .map_while(Result::ok)
                .all(|line| send.send(line).is_ok())
        });

        let mut log = File::create(log).with_context(|| format!("{} cannot be made", log.display()))?;
        let mut outcome = Outcome {
            checks: 0,
            failed: 0,
            ended: false,
            duration: Duration::ZERO,
        };
        let ended = loop {
            match lines.recv_timeout(DEADLINE.saturating_sub(start.elapsed())) {
                Ok(line) => outcome.read(&String::from_utf8_lossy(&line), start, &mut log)?,
                Err(RecvTimeoutError::Disconnected) => break true,
                Err(RecvTimeoutError::Timeout) => break false,
            }
        };
        stop(&mut qemu, ended)?;
        let _ = reader.join();
        outcome.ended &= ended;
        outcome.duration = start.elapsed();
        Ok(outcome)
    }

    fn command(&self, chapter: &str, disks: &[(&str, &PathBuf)]) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-machine",
            "q35,smm=off,vmport=off,hpet=off",
            "-accel",
            "tcg,thread=multi,tb-size=512",
        ])
        .args(["-cpu", "max,la57=off", "-smp", "2", "-m", "1024"])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
        ])
        .args(["-device", "virtio-rng-pci"])
        .arg("-kernel")
        .arg(&self.kernel)
        .arg("-initrd")
        .arg(&self.initramfs)
        .args(["-append", &format!("console=ttyS0 quiet panic=-1 chapter={chapter}")]);
        for (number, (serial, path)) in disks.iter().enumerate() {
            // cache=unsafe: the guest's crash is one of the guest, not of this machine.
            let drive = format!(
                "if=none,id=d{number},file={},format=raw,cache=unsafe,aio=threads",
                path.display()
            );
            qemu.args(["-drive", &drive]);
            qemu.args(["-device", &format!("virtio-blk-pci,drive=d{number},serial={serial}")]);
        }
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        qemu
    }
}

impl Outcome {
    /// Takes one line of the console. The words are `disk-vm-guest`'s.
    fn read(&mut self, line: &str, start: Instant, log: &mut File) -> Result<()> {
        let line = line.trim_end();
        let seconds = start.elapsed().as_secs_f64();
        writeln!(log, "{seconds:7.2} {line}").context("console log cannot be written")?;
        let _ = writeln!(io::stdout(), "{seconds:7.2} {line}");
        if line.starts_with("CHECK ") {
            self.checks += 1;
            self.failed += usize::from(!line.starts_with("CHECK passed"));
        }
        self.ended |= line == "END";
        Ok(())
    }
}

fn stop(qemu: &mut Child, ended: bool) -> Result<()> {
    if !ended {
        qemu.kill().context("QEMU cannot be stopped")?;
    }
    qemu.wait().context("QEMU cannot be waited for")?;
    Ok(())
}
