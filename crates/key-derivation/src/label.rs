use std::fmt;

use cluster_types::{ClusterId, DiskUuid, NodeRole};

/// The purpose of a derived key. No two labels have the same encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// The DEK of an encrypted volume, as the predecessor derived it.
    Disk(DiskUuid),
    /// The DEK of a node's state disk.
    StateDisk {
        /// The UUID that the disk's header has.
        disk: DiskUuid,
        /// Whose disk it is.
        owner: DiskOwner,
    },
    /// The secret that the cluster id is derived from.
    MeasurementSecret,
    /// The private key with which the key service signs what it hands to nodes.
    KeyServiceIdentity,
    /// The private key with which the operator signs.
    OperatorIdentity,
}

/// Whose state disk it is. Another machine that names the disk gets another key, and so does this one if it names another cluster or role. So
/// the key that opens a disk confirms all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskOwner {
    /// The cluster that admitted the machine.
    pub cluster: ClusterId,
    /// Its attested identity.
    pub machine: [u8; 32],
    /// The role that it was admitted to.
    pub role: NodeRole,
}

/// The generation of a derived key. Generation 0 is the predecessor's formula.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl Label {
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
            Self::StateDisk { disk, owner } => {
                let DiskOwner { cluster, machine, role } = owner;
                write!(f, "stateDisk-{disk}-{cluster}-{}-{role}", hex::encode(machine))
            }
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
        let state_disk = |n: u128, cluster, machine, role| Label::StateDisk {
            disk: uuid_of(n),
            owner: DiskOwner {
                cluster: ClusterId::new([cluster; 32]),
                machine: [machine; 32],
                role,
            },
        };
        let labels = [
            disk(0),
            disk(1),
            state_disk(0, 0, 0, NodeRole::Worker),
            state_disk(0, 0, 0, NodeRole::ControlPlane),
            state_disk(0, 0, 1, NodeRole::Worker),
            state_disk(0, 1, 0, NodeRole::Worker),
            state_disk(1, 0, 0, NodeRole::Worker),
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
}
