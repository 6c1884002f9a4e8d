use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which technology on which platform produces a node's Evidence.
///
/// A name is all that is here: what a program can attest or appraise is the list in `attestation-variants`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Variant {
    /// A virtual TPM 2.0 that the host's software provides. It shows that every mechanism works and does not protect from the host.
    QemuVtpm,
    /// A key in a file, of `crates/test-variant`. Only tests have an attester and a verifier for it.
    TestKey,
}

/// A text that is not a variant.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an attestation variant such as {example}", example = Variant::ALL[0])]
pub struct ParseVariantError(String);

impl Variant {
    /// Every variant that has a name.
    pub const ALL: &[Self] = &[Self::QemuVtpm, Self::TestKey];

    /// The name in configuration files and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QemuVtpm => "qemu-vtpm",
            Self::TestKey => "test-key",
        }
    }
}

impl FromStr for Variant {
    type Err = ParseVariantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.iter().find(|variant| variant.as_str() == text);
        named
            .copied()
            .ok_or_else(|| ParseVariantError(text.chars().take(64).collect()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for variant in Variant::ALL {
            assert_eq!(variant.as_str().parse::<Variant>().unwrap(), *variant);
        }
        let error = "qemu".parse::<Variant>().unwrap_err().to_string();
        assert_eq!(error, "\"qemu\" is not an attestation variant such as qemu-vtpm");
    }
}
