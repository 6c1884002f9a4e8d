//! The client with which the join service asks the key service of its control plane to admit a node.
//!
//! They talk over a Unix socket. The caller needs no credentials and learns no secret: what it gets is sealed to the node.

mod client;

pub use client::{KeyServiceClient, KeyServiceError, PresentedPolicy, WantedRole};
