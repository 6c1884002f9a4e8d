//! How a program inside the cluster asks the key service for a key.
//!
//! The connection is TLS 1.3 to a server with one pinned Ed25519 key, which the key service derives from the master
//! secret: nobody without the master secret can answer in its place. The caller shows who it is by a service-account
//! token made for the audience [`AUDIENCE`](cluster_types::key_service::AUDIENCE).

mod client;
mod identity;

pub use client::{KeyServiceClient, KeyServiceError};
pub use identity::{public_key, server_config};
