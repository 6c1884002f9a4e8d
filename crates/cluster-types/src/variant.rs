use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which technology on which platform produces a node's Evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Variant {
    /// A virtual TPM 2.0 that the host's software provides. It shows that every mechanism works and does not protect from the host.
    QemuVtpm,
}

/// A text that is not a variant.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an attestation variant: expected qemu-vtpm")]
pub struct ParseVariantError(String);

impl Variant {
    /// The name in configuration files and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QemuVtpm => "qemu-vtpm",
        }
    }
}

impl FromStr for Variant {
    type Err = ParseVariantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "qemu-vtpm" => Ok(Self::QemuVtpm),
            _ => Err(ParseVariantError(text.chars().take(64).collect())),
        }
    }
}

impl TryFrom<String> for Variant {
    type Error = ParseVariantError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Variant> for String {
    fn from(variant: Variant) -> Self {
        variant.as_str().to_owned()
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
