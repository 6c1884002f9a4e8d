use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The UUID of a node's LUKS2 state disk or of an encrypted volume.
///
/// Written in lower case with hyphens, because that text is the input of key derivation, where case matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskUuid(Uuid);

/// A text that is not the canonical form of a UUID.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a UUID of 36 lower-case characters")]
pub struct ParseDiskUuidError(String);

impl FromStr for DiskUuid {
    type Err = ParseDiskUuidError;

    /// Accepts only the canonical form: no braces, no URN, no upper case. Two spellings of one disk would give two keys.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseDiskUuidError(text.chars().take(64).collect());
        let uuid = Uuid::parse_str(text).map_err(|_| refuse())?;
        if uuid.hyphenated().to_string() == text {
            Ok(Self(uuid))
        } else {
            Err(refuse())
        }
    }
}

impl From<Uuid> for DiskUuid {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl TryFrom<String> for DiskUuid {
    type Error = ParseDiskUuidError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DiskUuid> for String {
    fn from(uuid: DiskUuid) -> Self {
        uuid.to_string()
    }
}

impl fmt::Display for DiskUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_the_canonical_form() {
        let canonical = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";
        assert_eq!(canonical.parse::<DiskUuid>().unwrap().to_string(), canonical);
        for other in [
            "3F2504E0-4F89-11D3-9A0C-0305E82C3301",
            "3f2504e04f8911d39a0c0305e82c3301",
            "{3f2504e0-4f89-11d3-9a0c-0305e82c3301}",
            "urn:uuid:3f2504e0-4f89-11d3-9a0c-0305e82c3301",
            "measurementSecret",
            "",
        ] {
            assert!(other.parse::<DiskUuid>().is_err(), "{other}");
        }
    }
}
