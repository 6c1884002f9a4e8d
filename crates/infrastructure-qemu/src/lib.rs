//! The local provider: VMs, software TPMs and a network on one machine, made of plain processes.
//!
//! No root, no libvirt, no containers. Each node is a QEMU process with OVMF, a software TPM and a sparse state disk in a
//! folder of its own. Nodes reach this machine through QEMU's user network and each other through a multicast group on
//! loopback; a metadata endpoint on loopback tells them their names.
//!
//! # What a crash leaves
//! Everything is below one run folder. `cluster.json` holds every choice (ports, names) before the first process that
//! depends on it is started. A process is started through [`HelperCommand::Exec`], which writes who it is before it
//! becomes the program, so there is no process without a record. A node's folder gets its name only when it is complete. So
//! [`create`](infrastructure::Provider::create) resumes and [`destroy`](infrastructure::Provider::destroy) ends whatever
//! is there.
//!
//! A process belongs to the folder in which it works. A run folder can be renamed; a copy of one whose machines run is refused.
//!
//! # What it is not
//! It gives no confidentiality: the TPM is software of the host. It shows that every mechanism works.

mod accelerator;
mod console;
mod error;
mod folder;
mod helper;
mod machine;
mod memory;
mod metadata;
mod mirror;
mod monitor;
mod network;
mod option;
mod ports;
mod preflight;
mod problem;
mod process;
mod proof;
mod provider;
mod vm;
mod workspace;

pub use accelerator::{Accelerator, KvmProbe};
pub use error::QemuError;
pub use folder::RunFolder;
pub use helper::{HelperCommand, HelperError};
pub use metadata::MetadataError;
pub use problem::PreflightProblem;
pub use process::Helper;
pub use provider::{AccelerationChoice, QemuOptions, QemuProvider};
