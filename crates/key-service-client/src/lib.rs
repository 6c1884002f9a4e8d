//! The client with which programs inside the cluster get keys from the key service.
//!
//! The connection is TLS 1.3 to a server with a pinned Ed25519 key. The key service derives that key from the master secret,
//! so no one without the master secret can answer in its place. The caller identifies itself by a service-account token
//! issued for the audience [`AUDIENCE`](cluster_types::key_service::AUDIENCE).

mod client;
mod identity;

pub use client::{KeyServiceClient, KeyServiceError};
pub use identity::{public_key, server_config};
