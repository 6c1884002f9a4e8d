//! The node image in real VMs, and what a host can do to them.
//!
//! A [`Machine`] says how a VM looks, including what a hostile host adds to it; [`Machine::run`] boots it and hands a running
//! [`Vm`] to the checks. When one fails, the console and what else is known is printed. [`attest`] opens a session to the
//! bootstrapper in it, as the CLI does.
//!
//! `make e2e` runs the tests one after another: they share two cores with the machines they boot.

mod acpi;
mod cluster;
mod dhcp;
mod image;
mod machine;
mod metadata;
mod monitor;
mod observed;
mod packet;
mod planted;
mod process;
mod session;
mod variables;
mod vm;

pub use acpi::table_that_writes;
pub use cluster::{Capture, Cluster, Forward, PROBE_IMAGE, RUN_FOLDER, TestMirror, private_network_port};
pub use image::Image;
pub use machine::{Machine, StateDisk};
pub use metadata::{Answer, NETWORK};
pub use packet::{Packet, dumped_packets};
pub use planted::{null_cipher_header, partitions};
pub use session::{CANARY, Registers, Verdict, attest, init_with_wrong_secret};
pub use variables::Variable;
pub use vm::Vm;
