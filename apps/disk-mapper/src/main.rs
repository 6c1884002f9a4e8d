//! Prepares the state disk of a node. node-init starts it from the verified root file system, before systemd.
//!
//! 1. The state disk is the one disk with the serial number `state`.
//! 2. What is on it is copied to memory and classified: nothing, an unfinished header, a header of exactly our shape,
//!    something else.
//! 3. [`decide()`] says what that means: format, wait for the key, or refuse.
//! 4. A new node's disk is formatted under an ephemeral key, opened, given a file system and mounted at `/run/state`.
//!
//! Every step is a line on standard output, which is the console. After an exit code other than zero, node-init powers the
//! machine off; the reason is in the last line.
//!
//! What this program does not do: it does not use the network and does not know any key of a cluster. A known node waits
//! here; rejoining and recovery will bring its key.

mod console;
mod decide;
mod disk;
mod memory;
mod new_node;

use std::process::ExitCode;

use anyhow::Result;
use cluster_types::DiskUuid;

use console::Console;
use decide::{Action, NewNode, decide};

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

/// Waits for the key of a known node's disk.
///
/// Nothing brings the key yet, so this prints how to continue, and never returns.
fn wait_for_key(disk: DiskUuid, console: &Console) -> ! {
    console.say(&format!("disk {disk} belongs to a node that has joined a cluster"));
    console.say(&format!("waiting for the key of disk {disk}"));
    console.say("this version cannot fetch that key yet: it supports neither rejoining nor recovery");
    console.say("to continue, remove this node from the cluster and start it again with a blank state disk");
    loop {
        std::thread::park();
    }
}
