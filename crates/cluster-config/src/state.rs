use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aws_lc_rs::rand;
use cluster_policy::SignedPolicy;
use cluster_types::{BootId, ClusterId, MeasurementSalt, NodeName};
use digest::Digest;
use document::DocumentError;
use infrastructure::Infrastructure;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::made_of::MadeOf;
use crate::raw;
use crate::yaml::from_yaml;

/// The one version that is read. Version 1 was the predecessor's; version 2 did not say what a cluster was made from.
const VERSION: &str = "v3";
/// No state of ours is longer.
const MAX_STATE_LEN: usize = 1 << 20;

/// What the program knows about a cluster: `constellation-state.yaml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterState {
    version: String,
    /// Proves to the first node that the caller created it.
    pub init_secret: InitSecret,
    /// Salt of the cluster id.
    pub measurement_salt: MeasurementSalt,
    /// How far creating the cluster got.
    pub init: InitProgress,
    /// The cluster id, once there is one.
    #[serde(rename = "clusterID", default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<ClusterId>,
    /// Nodes that were seen as part of the cluster.
    #[serde(default)]
    pub members: BTreeSet<NodeName>,
    /// The SHA-256 of each file that this program wrote for this cluster, by name. Only those may be replaced or removed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) files: BTreeMap<String, Digest>,
    /// In which boot a node was last seen ready, and with which start of its machine.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub boots: BTreeMap<NodeName, Boot>,
    /// The attested identity of each node's machine, from the session in which it was first affirmed. A node keeps its machine.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub identities: BTreeMap<NodeName, Digest>,
    /// The newest policy that the operator signed for this cluster, stored before anyone else gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<SignedPolicy>,
    /// What the machines were made from, recorded before the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_of: Option<MadeOf>,
    /// The machines, once there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<Infrastructure>,
}

/// A boot of a node that became ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Boot {
    /// The start of its machine, in the provider's words.
    pub start: String,
    /// The node's boot id, as Kubernetes shows it.
    #[serde(rename = "bootID")]
    pub boot_id: BootId,
}

/// How far creating the cluster got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitProgress {
    /// The first node was not asked yet.
    NotStarted,
    /// It was asked and the answer is not known. Its disk cannot be used again.
    Started,
    /// The cluster exists.
    Done,
}

/// 32 random bytes; the metadata holds only their SHA-256.
pub struct InitSecret(Zeroizing<[u8; 32]>);

/// A state file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ParseStateError {
    /// Longer than any real one.
    #[error("the file has {0} bytes, at most {MAX_STATE_LEN} are accepted")]
    TooLong(usize),
    /// Of another version.
    #[error("version: {found:?} is not supported, expected {VERSION:?}")]
    Version {
        /// What the file says.
        found: String,
    },
    /// Not of its form.
    #[error(transparent)]
    Form(#[from] DocumentError),
}

impl ClusterState {
    /// The state of a cluster that does not exist yet, with fresh random values.
    #[must_use]
    pub fn new() -> Self {
        Self {
            version: VERSION.to_owned(),
            init_secret: InitSecret(Zeroizing::new(random())),
            measurement_salt: MeasurementSalt::new(random()),
            init: InitProgress::NotStarted,
            cluster_id: None,
            members: BTreeSet::new(),
            files: BTreeMap::new(),
            boots: BTreeMap::new(),
            identities: BTreeMap::new(),
            policy: None,
            made_of: None,
            infrastructure: None,
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it is not of its form.
    pub fn parse(text: &str) -> Result<Self, ParseStateError> {
        if text.len() > MAX_STATE_LEN {
            return Err(ParseStateError::TooLong(text.len()));
        }
        let versioned: raw::Versioned = from_yaml(text)?;
        let found = versioned.found(VERSION)?;
        if found == VERSION {
            Ok(from_yaml(text)?)
        } else {
            Err(ParseStateError::Version { found })
        }
    }

    /// The file; the caller gives it mode 0600.
    #[must_use]
    pub fn to_yaml(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_saphyr::to_string(self).expect("the state has text keys only"))
    }
}

impl Default for ClusterState {
    fn default() -> Self {
        Self::new()
    }
}

impl InitSecret {
    /// The secret bytes, for the one message that carries them to the first node.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// What the metadata says: SHA-256 in hex.
    #[must_use]
    pub fn hash(&self) -> String {
        Digest::of(self.expose()).to_string()
    }
}

impl fmt::Debug for InitSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InitSecret(..)")
    }
}

impl Serialize for InitSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(hex::encode(self.expose())))
    }
}

impl<'de> Deserialize<'de> for InitSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let mut bytes = Zeroizing::new([0; 32]);
        // The text is left out of the message.
        hex::decode_to_slice(text.as_bytes(), &mut *bytes)
            .map_err(|_| serde::de::Error::custom("expected 64 hex digits"))?;
        Ok(Self(bytes))
    }
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).expect("the system's random source does not fail after boot");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_round_trip() {
        let mut state = ClusterState::new();
        state.cluster_id = Some(ClusterId::new([7; 32]));
        state.members.insert("worker-0".parse().unwrap());
        let again = ClusterState::parse(&state.to_yaml()).unwrap();
        assert_eq!(again.init_secret.expose(), state.init_secret.expose());
        assert_eq!(*again.to_yaml(), *state.to_yaml());
    }

    #[test]
    fn errors_name_the_key_and_keep_the_secret() {
        let good = ClusterState::new().to_yaml();
        let secret = hex::encode(ClusterState::parse(&good).unwrap().init_secret.expose());
        for (from, to, path) in [
            (secret.as_str(), &secret[1..], "initSecret"),
            ("init: not-started", "init: maybe", "init"),
            ("version: v3", "version: v2", "version"),
            ("members:", "membres:", "membres"),
        ] {
            let error = ClusterState::parse(&good.replace(from, to))
                .expect_err(path)
                .to_string();
            assert!(error.contains(path), "{error}");
            assert!(!error.contains(&secret[1..]), "{error}");
        }
    }
}
