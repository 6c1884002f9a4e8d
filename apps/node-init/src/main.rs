//! The first program of a node, `/init` of the initramfs.
//!
//! 1. Mount the kernel's file systems.
//! 2. Compare the clock with the RTC, and restart the machine if it runs at a wrong rate.
//! 3. On an emulated processor, let timers be late.
//! 4. Load the modules that reach the boot disk.
//! 5. Find the two partitions whose UUIDs follow from the root hash on the measured command line.
//! 6. Open the root file system under dm-verity with that hash, and make it the root.
//! 7. Load the modules that the state disk needs, and the way to its key.
//! 8. Run the disk-mapper, which mounts the state disk at `/run/state`.
//! 9. Put the writable folders of the system onto the state disk.
//! 10. Become systemd.
//!
//! There is no shell and no prompt. A failure is printed on the console, and the machine powers off.

mod clock;
mod command_line;
mod console;
mod modules;
mod partitions;
mod root;
mod state;
mod timers;

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use clock::{CompareError, ThisMachine, Verdict};
use command_line::{ParseRootError, Root};

const RTC: &str = "/sys/class/rtc/rtc0/since_epoch";
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// This node cannot boot.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("cannot mount the kernel's file systems")]
    KernelFileSystems(#[source] io::Error),
    #[error("cannot read the kernel command line")]
    ReadCommandLine(#[source] io::Error),
    #[error("the kernel command line does not name a root file system")]
    CommandLine(#[from] ParseRootError),
    #[error(transparent)]
    Modules(#[from] modules::LoadModulesError),
    #[error(transparent)]
    Partitions(#[from] partitions::FindPartitionError),
    #[error(transparent)]
    Root(#[from] root::OpenRootError),
    #[error(transparent)]
    State(#[from] state::PrepareStateError),
    #[error("cannot start systemd")]
    Systemd(#[source] io::Error),
}

fn main() {
    std::panic::set_hook(Box::new(|info| {
        console::power_off(&format!("node-init failed: {info}"))
    }));
    let Err(error) = boot();
    console::power_off(&console::chain(&error));
}

fn boot() -> Result<Infallible, BootError> {
    root::mount_kernel_file_systems().map_err(BootError::KernelFileSystems)?;
    if let Err(error) = check_clock() {
        // Not every platform has an RTC. Without one, the platform is responsible for the clock.
        console::say(&format!("the clock is not checked: {}", console::chain(&error)));
    }
    if let Err(error) = timers::relax_if_emulated() {
        console::say(&format!("timers are exact, which costs time: {error}"));
    }
    modules::load(Path::new("/modules"), Path::new("/modules/order"))?;
    console::say("looking for the root file system");
    let command_line = fs::read_to_string("/proc/cmdline").map_err(BootError::ReadCommandLine)?;
    let root = Root::parse(&command_line)?;
    let partitions = partitions::find(&root.hash)?;
    root::open(&root, &partitions)?;
    root::switch()?;
    console::say("root file system verified and mounted");
    modules::load(Path::new("/"), Path::new("/usr/lib/constellation/modules.early"))?;
    console::say("starting the disk-mapper");
    state::run_disk_mapper()?;
    state::mount_writable_folders()?;
    console::say("starting systemd");
    Err(BootError::Systemd(Command::new(SYSTEMD).env_clear().exec()))
}

/// Returns when the clock runs at the right rate; restarts the machine when it does not.
fn check_clock() -> Result<(), CompareError> {
    let clocks = ThisMachine { rtc: Path::new(RTC) };
    let mut comparisons = Vec::new();
    loop {
        match clock::decide(&comparisons) {
            Verdict::GoOn => return Ok(()),
            Verdict::CompareAgain(time) => {
                let comparison = clock::compare(&clocks, time)?;
                console::say(&format!(
                    "clock runs at {:.3} times the rate of the RTC",
                    comparison.rate()
                ));
                comparisons.push(comparison);
            }
            Verdict::Restart => console::restart("the clock runs at a wrong rate, which only a restart corrects"),
        }
    }
}
