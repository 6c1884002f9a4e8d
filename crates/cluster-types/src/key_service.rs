//! How callers recognise the key service, and how it recognises them.

use std::fmt;
use std::str::FromStr;

use crate::Service;

/// Audience of the service-account tokens that the key service accepts.
pub const AUDIENCE: &str = Service::Key.name();

/// The longest key that is handed out, in bytes.
pub const MAX_KEY_LEN: u32 = 64;

/// The Ed25519 public key of a cluster's key service, written in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyServicePublicKey([u8; 32]);

/// A text that is not a public key.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a public key of 64 hex digits")]
pub struct ParseKeyServicePublicKeyError(String);

impl KeyServicePublicKey {
    /// Takes a key's bytes (RFC 8032 section 5.1.5).
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's 32 bytes (RFC 8032 section 5.1.5).
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for KeyServicePublicKey {
    type Err = ParseKeyServicePublicKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| ParseKeyServicePublicKeyError(text.chars().take(80).collect()))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for KeyServicePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_64_hex_digits() {
        let key = KeyServicePublicKey::new([0xd7; 32]);
        assert_eq!(key.to_string().parse::<KeyServicePublicKey>().unwrap(), key);
        for other in ["", "d7", &"d7".repeat(33), &"g7".repeat(32)] {
            assert!(other.parse::<KeyServicePublicKey>().is_err(), "{other:?}");
        }
    }
}
