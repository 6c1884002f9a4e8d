use std::fmt;

use serde::{Deserialize, Serialize};

/// A byte string that does not have the length of its type.
#[derive(Debug, thiserror::Error)]
#[error("{what} has {actual} bytes, expected 32")]
pub struct WrongLength {
    /// What the text should have been, as in the message.
    pub what: &'static str,
    /// Length in bytes.
    pub actual: usize,
}

macro_rules! public_array {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub struct $name(#[serde(with = "hex::serde")] [u8; 32]);

        impl $name {
            /// Takes 32 bytes.
            #[must_use]
            pub const fn new(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes that it wraps.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = WrongLength;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                let array = bytes
                    .try_into()
                    .map_err(|_| WrongLength { what: stringify!($name), actual: bytes.len() })?;
                Ok(Self(array))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

public_array! {
    /// What a node measures when it becomes part of a cluster, before its role. It is derived from the measurement secret and the
    /// [`MeasurementSalt`], and is public.
    ClusterId
}

public_array! {
    /// Random bytes that the CLI generates once per cluster. They are public.
    MeasurementSalt
}

public_array! {
    /// The operator's Ed25519 public key, which only one master secret gives. A node measures it before its first attested
    /// session, so that whoever talks to the node knows whom it obeys.
    OperatorPublicKey
}

public_array! {
    /// The Ed25519 public key of a cluster's key service. The cluster policy names it, so that a node knows from whom its secrets are.
    KeyServicePublicKey
}

public_array! {
    /// The X25519 public key to which a node's secrets are sealed. The node makes it for one session, and its Evidence covers it.
    SealingPublicKey
}

impl OperatorPublicKey {
    /// What a node measures that obeys this operator: `constellation operator v1`, then the key.
    #[must_use]
    pub fn event(&self) -> Vec<u8> {
        [&b"constellation operator v1"[..], &self.0].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_lengths_are_refused() {
        for length in [0, 31, 33, 64] {
            let bytes = vec![0; length];
            assert!(ClusterId::try_from(bytes.as_slice()).is_err(), "{length}");
        }
    }

    #[test]
    fn is_written_in_hex() {
        let json = serde_json::to_string(&ClusterId::new([0xab; 32])).unwrap();
        assert_eq!(json, format!("\"{}\"", "ab".repeat(32)));
    }
}
