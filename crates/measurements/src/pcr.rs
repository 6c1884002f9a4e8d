use std::collections::BTreeMap;
use std::fmt;

use digest::Digest;
use serde::{Deserialize, Serialize};

/// The index of a platform configuration register, 0 to 23 (TCG PC Client Platform TPM Profile, section 4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct PcrIndex(u8);

/// A register number above 23.
#[derive(Debug, thiserror::Error)]
#[error("PCR {0} does not exist; a TPM has registers 0 to 23")]
pub struct PcrIndexOutOfRange(u8);

impl PcrIndex {
    /// The registers that tell which image runs: boot loader and UKI, kernel and initramfs, UKI sections, additions to the command
    /// line, system extensions (systemd-stub(7)).
    pub const IMAGE: [Self; 5] = [Self(4), Self(9), Self(11), Self(12), Self(13)];
    /// Extended with the operator's key before the first attested session. Nothing else uses it.
    pub const OPERATOR: Self = Self(14);
    /// Zero until the node is part of a cluster, then extended with the cluster's id and the node's role. Nothing else uses it.
    pub const MEMBERSHIP: Self = Self(15);

    /// Makes an index of a constant.
    ///
    /// # Panics
    /// When the index is above 23; in a `const` that is a compile error.
    #[must_use]
    pub const fn new(index: u8) -> Self {
        assert!(index < 24, "a TPM has the registers 0 to 23");
        Self(index)
    }

    /// The register's number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for PcrIndex {
    type Error = PcrIndexOutOfRange;

    fn try_from(index: u8) -> Result<Self, Self::Error> {
        if index < 24 {
            Ok(Self(index))
        } else {
            Err(PcrIndexOutOfRange(index))
        }
    }
}

impl From<PcrIndex> for u8 {
    fn from(index: PcrIndex) -> Self {
        index.0
    }
}

impl fmt::Display for PcrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The content of one register in the SHA-256 bank.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PcrValue(Digest);

impl PcrValue {
    /// The value of PCR 0 to 16 after power-on.
    pub const ZERO: Self = Self(Digest::new([0; 32]));

    /// A value read from a TPM.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(Digest::new(bytes))
    }

    /// The value of the register after one more extension: `SHA-256(old ‖ digest)` (TPM 2.0 part 1, section 17.2).
    #[must_use]
    pub fn extend(self, digest: Digest) -> Self {
        let mut both = [0; 64];
        both[..32].copy_from_slice(self.as_bytes());
        both[32..].copy_from_slice(digest.as_bytes());
        Self(Digest::of(&both))
    }

    /// The value of the register after `TPM2_PCR_Event` with this event, whose data the TPM hashes itself.
    #[must_use]
    pub fn event(self, data: &[u8]) -> Self {
        self.extend(Digest::of(data))
    }

    /// The value as a digest.
    #[must_use]
    pub const fn digest(self) -> Digest {
        self.0
    }

    /// The SHA-256 value, 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Display for PcrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PcrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PcrValue({self})")
    }
}

/// Registers by index, as read from a TPM or as quoted by one.
pub type PcrValues = BTreeMap<PcrIndex, PcrValue>;

#[cfg(test)]
mod tests {
    use super::*;

    /// The event is the cluster id of the derivation vectors.
    #[test]
    fn cluster_id_event_matches_the_vector() {
        let cluster_id = hex::decode("128c164378fe8767f998fbdfe4b4d6463ec5ae1b664ea5999bc27417607ae9b6").unwrap();
        assert_eq!(
            PcrValue::ZERO.event(&cluster_id).to_string(),
            "23400370357e846478cce7cc0c76cdfe4da077cc57b36dee0f665ede2c8b3f2f"
        );
    }

    #[test]
    fn one_separator_matches_the_vector() {
        assert_eq!(
            PcrValue::ZERO.event(&[0; 4]).to_string(),
            "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
        );
    }

    #[test]
    fn register_24_does_not_exist() {
        assert!(PcrIndex::try_from(23).is_ok());
        assert!(PcrIndex::try_from(24).is_err());
    }
}
