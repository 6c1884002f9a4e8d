//! State disks in a real VM.
//!
//! dm-crypt and dm-integrity need a kernel that has them, which the machine that runs our tests may not. So this boots
//! Debian's kernel under software emulation with an initramfs that holds nothing but what is tested: `disk-mapper`,
//! cryptsetup, mkfs, and `disk-vm-guest` as the first program, which drives them and reports.
//!
//! ```text
//! cargo xtask compile disk-mapper disk-vm-guest
//! cargo run -p test-disk-vm -- --root ROOT --programs TARGET/x86_64-unknown-linux-musl/release --work FOLDER
//! ```
//!
//! `ROOT` is a folder with these Debian packages unpacked, and those they need: linux-image-cloud-amd64, cryptsetup-bin,
//! e2fsprogs. `FOLDER/out.img` then starts with the header of a re-keyed disk of ours (32 KiB), followed by that of a disk
//! made the predecessor's way. What the guest reports is printed; the exit code is zero only if every check passed and all boots ended.

mod boot;
mod initramfs;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use boot::{Machine, Outcome};

/// Runs the checks of state disks in a VM.
#[derive(Parser)]
struct Arguments {
    /// Folder with unpacked Debian packages: cryptsetup-bin, e2fsprogs.
    #[arg(long)]
    root: PathBuf,
    /// Folder with the unpacked kernel package, if it is another one.
    #[arg(long)]
    kernel_root: Option<PathBuf>,
    /// Folder with our statically linked programs.
    #[arg(long)]
    programs: PathBuf,
    /// Folder for initramfs, disks and console logs; made if it does not exist.
    #[arg(long)]
    work: PathBuf,
    /// Ends after this chapter: new, known, power-cuts, predecessor, two-disks.
    #[arg(long, default_value = LAST_CHAPTER)]
    until: String,
}

const LAST_CHAPTER: &str = "two-disks";

/// Size of the state disk in bytes. It is sparse; the size matters because some steps take time in proportion.
const STATE_DISK_SIZE: u64 = 20 << 30;
/// Size in bytes of the disk on which the guest leaves files for us.
const OUT_DISK_SIZE: u64 = 1 << 20;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Boots the same disk again and again; each boot is one chapter of the guest's story.
fn run(arguments: &Arguments) -> Result<bool> {
    let work = &arguments.work;
    fs::create_dir_all(work).with_context(|| format!("{} cannot be made", work.display()))?;
    let initramfs = work.join("initramfs.cpio");
    let kernel_root = arguments.kernel_root.as_ref().unwrap_or(&arguments.root);
    initramfs::build(&arguments.root, kernel_root, &arguments.programs, &initramfs)?;
    let (state, out) = (work.join("state.img"), work.join("out.img"));
    make_disk(&state, STATE_DISK_SIZE)?;
    make_disk(&out, OUT_DISK_SIZE)?;
    let machine = Machine {
        kernel: initramfs::kernel(kernel_root)?,
        initramfs,
    };

    let mut all_passed = true;
    for (chapter, disks) in [
        ("new", vec![("state", &state), ("out", &out)]),
        ("known", vec![("state", &state), ("out", &out)]),
        ("power-cuts", vec![("state", &state), ("out", &out)]),
        ("predecessor", vec![("state", &state), ("out", &out)]),
        (LAST_CHAPTER, vec![("state", &state), ("state", &out)]),
    ] {
        let outcome = machine.boot(chapter, &disks, &work.join(format!("{chapter}.log")))?;
        all_passed &= report(chapter, &outcome);
        if chapter == arguments.until {
            return Ok(all_passed);
        }
    }
    bail!("there is no chapter {:?}", arguments.until)
}

fn make_disk(path: &Path, size: u64) -> Result<()> {
    let disk = fs::File::create(path).with_context(|| format!("{} cannot be made", path.display()))?;
    disk.set_len(size)
        .with_context(|| format!("{} cannot have {size} bytes", path.display()))
}

fn report(chapter: &str, outcome: &Outcome) -> bool {
    let mut out = io::stdout();
    let verdict = if outcome.passed() { "passed" } else { "FAILED" };
    let _ = writeln!(
        out,
        "{chapter}: {verdict}, {} checks, {} failed, ended by itself: {}, {:.1} s",
        outcome.checks,
        outcome.failed,
        outcome.ended,
        outcome.duration.as_secs_f64()
    );
    outcome.passed()
}
