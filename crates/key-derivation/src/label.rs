use std::fmt;

use cluster_types::DiskUuid;

/// The purpose of a derived key. No two labels have the same encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// The DEK of a state disk or an encrypted volume. Both have the same form, as they did in the predecessor.
    Disk(DiskUuid),
    /// The secret that the cluster id is derived from.
    MeasurementSecret,
    /// The private key with which the key service proves its identity to callers.
    KeyServiceIdentity,
    /// The private key with which the operator signs role grants.
    OperatorIdentity,
}

/// The generation of a derived key. Generation 0 is the predecessor's formula.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

/// A key id that names none of the keys that are handed out.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a key id: expected measurementSecret or the UUID of a disk in lower case")]
pub struct ParseKeyIdError(String);

impl Label {
    /// Reads the id by which a caller of the key service names a key.
    ///
    /// Only keys that may leave the key service have such an id; the identities have none.
    ///
    /// # Errors
    /// When the id is neither `measurementSecret` nor a disk UUID.
    pub fn from_key_id(id: &str) -> Result<Self, ParseKeyIdError> {
        if id == "measurementSecret" {
            return Ok(Self::MeasurementSecret);
        }
        id.parse()
            .map(Self::Disk)
            .map_err(|_| ParseKeyIdError(id.chars().take(64).collect()))
    }

    /// The `info` input of HKDF.
    ///
    /// Labels of epoch 0 start with `key-` and those of later epochs with `epoch-`, so they cannot collide.
    pub(crate) fn info(self, epoch: Epoch) -> String {
        match epoch {
            Epoch(0) => format!("key-{self}"),
            Epoch(number) => format!("epoch-{number}/key-{self}"),
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(uuid) => uuid.fmt(f),
            Self::MeasurementSecret => f.write_str("measurementSecret"),
            Self::KeyServiceIdentity => f.write_str("keyServiceIdentity"),
            Self::OperatorIdentity => f.write_str("operatorIdentity"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_labels_encode_to_the_same_bytes() {
        let disk = |n: u128| Label::Disk(uuid_of(n));
        let labels = [
            disk(0),
            disk(1),
            Label::MeasurementSecret,
            Label::KeyServiceIdentity,
            Label::OperatorIdentity,
        ];
        let infos: HashSet<_> = labels
            .iter()
            .flat_map(|label| [0, 1, 11].map(|epoch| label.info(Epoch(epoch))))
            .collect();
        assert_eq!(infos.len(), labels.len() * 3);
    }

    fn uuid_of(n: u128) -> DiskUuid {
        let hex = format!("{n:032x}");
        format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
        .parse()
        .unwrap()
    }

    #[test]
    fn identities_cannot_be_asked_for() {
        for id in [
            "keyServiceIdentity",
            "operatorIdentity",
            "clusterID",
            "",
            "key-measurementSecret",
            "MeasurementSecret",
        ] {
            assert!(Label::from_key_id(id).is_err(), "{id}");
        }
    }
}
