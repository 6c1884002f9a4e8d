//! Runs the programs of a node's image: kubeadm, ctr, ip, systemctl, journalctl.
//!
//! [`Programs`] is where the outside world begins, so tests replace it. Every call is bounded in time and in how much of its
//! output is kept. Arguments never carry secrets, because every process on a node can read them.

mod call;
mod host;
mod tail;

pub use call::{Call, Output, RunError};
pub use host::{HostPrograms, Programs, Running};
