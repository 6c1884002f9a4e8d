//! Prepares the state disk of a node. node-init starts it from the verified root file system, before systemd.
//!
//! 1. The state disk is the one disk with the serial number `state`.
//! 2. What is on it is copied to memory and classified: nothing, an unfinished header, a header of exactly our shape,
//!    something else.
//! 3. [`decide()`] says what that means: format, wait for the key, or refuse.
//! 4. A new node's disk is formatted under an ephemeral key, opened, given a file system and mounted at `/run/state`.
//!
//! Every step is a line on standard output, which is the console. After an exit code other than zero, node-init powers the
//! machine off; the reason is in the last line of this program or of the bootstrapper.
//!
//! What this program does not do: it does not use the network and does not know any key of a cluster. For a known node's disk it becomes the
//! bootstrapper, which asks the cluster for the key.

mod console;
mod decide;
mod disk;
mod memory;
mod new_node;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use cluster_types::DiskUuid;
use disk_encryption::paths::RUN_DIR;

use console::Console;
use decide::{Action, NewNode, decide};

const BOOTSTRAPPER: &str = "/usr/bin/bootstrapper";

fn main() -> ExitCode {
    let console = Console::start();
    match run(&console) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console.say(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(console: &Console) -> Result<()> {
    let path = disk::wait_for_state_disk()?;
    let (contents, size) = disk::look_at(&path)?;
    console.say(&format!("state disk is {}, {} MiB", path.display(), size >> 20));
    match decide(contents, size)? {
        Action::Format(reason) => {
            console.say(&match reason {
                NewNode::BlankDisk => "the disk is blank: this is a new node".to_owned(),
                NewNode::UnfinishedHeader => {
                    "its disk was being formatted when the power went: this is a new node".to_owned()
                }
                NewNode::NeverJoined(disk) => format!("disk {disk} never joined a cluster: this is a new node"),
            });
            new_node::prepare(&path, console)
        }
        Action::WaitForKey(disk) => wait_for_key(disk, console),
    }
}

/// Returns only if the bootstrapper cannot be started.
fn wait_for_key(disk: DiskUuid, console: &Console) -> Result<()> {
    memory::make_folder(Path::new(RUN_DIR))?;
    console.say(&format!("disk {disk} belongs to a node that has joined a cluster"));
    console.say(&format!("waiting for the key of disk {disk}"));
    let error = Command::new(BOOTSTRAPPER).arg("rejoin").exec();
    Err(error).with_context(|| format!("cannot start {BOOTSTRAPPER}"))
}
