//! How a program inside the cluster asks the key service for a key.
//!
//! The connection is TLS 1.3 to a server with one pinned Ed25519 key, which the key service derives from the master
//! secret: nobody without the master secret can answer in its place. The caller shows who it is by a service-account
//! token made for the audience [`AUDIENCE`].

mod client;
mod identity;

pub use client::{KeyServiceClient, KeyServiceError};
pub use identity::{KeyServicePublicKey, ParseKeyServicePublicKeyError, server_config};

/// Audience of the tokens that the key service accepts.
pub const AUDIENCE: &str = "key-service";

/// The most bytes of a key that are given out.
pub const MAX_KEY_LEN: u32 = 64;
