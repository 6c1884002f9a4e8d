//! What a cluster runs on, and what a provider of it must be able to do.
//!
//! Nothing in here is trusted by a node or about a node: a provider makes machines, attestation says what they are.

mod error;
mod mirror;
mod provider;
mod spec;

pub use error::ProviderError;
pub use mirror::{MirrorSource, ParseMirrorSourceError};
pub use provider::{Change, Infrastructure, Machine, MachineStatus, NodePorts, Plan, Provider};
pub use spec::{ClusterSpec, NodeSpec};
