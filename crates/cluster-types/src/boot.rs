use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Names one boot of a Linux kernel: the UUID in `/proc/sys/kernel/random/boot_id`.
///
/// A node says it of itself, so it is as short as a UUID before anyone keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(Uuid);

/// A text that is not a UUID.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a boot id, which is a UUID")]
pub struct ParseBootIdError(String);

impl FromStr for BootId {
    type Err = ParseBootIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uuid = Uuid::parse_str(text).map_err(|_| ParseBootIdError(text.chars().take(64).collect()))?;
        Ok(Self(uuid))
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuid_names_a_boot() {
        let text = "0f2b7a54-6a1e-4d3e-9a59-0d6c4e7f1a2b";
        assert_eq!(text.parse::<BootId>().unwrap().to_string(), text);
        for bad in [
            "",
            "boot 1",
            &text[1..],
            &"0".repeat(1 << 20),
            "0f2b7a54-6a1e-4d3e-9a59-0d6c4e7f1a2\x1b",
        ] {
            let error = bad.parse::<BootId>().unwrap_err();
            assert!(error.to_string().len() < 200, "{error}");
        }
    }
}
