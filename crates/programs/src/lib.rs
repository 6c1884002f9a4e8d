//! Runs the programs of a node's image: kubeadm, ctr, ip, systemctl, journalctl.
//!
//! [`Programs`] is where the outside world begins, so that tests replace it. Every call is bounded in time and in what is
//! kept of its output. Arguments never carry secrets: every process of a node can read them.

mod call;
mod host;
mod tail;

pub use call::{Call, Output, RunError};
pub use host::{HostPrograms, Programs, Running};
