//! The configuration for serde: what each key holds, right or wrong, so that all mistakes can be reported at once.

use std::collections::BTreeMap;

use document::DocumentError;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The one version that is read.
pub(crate) const VERSION: &str = "v5";

/// Only the version, to distinguish an old file from an invalid one.
#[derive(Deserialize)]
pub(crate) struct Versioned {
    #[serde(default)]
    pub(crate) version: Given<String>,
}

impl Versioned {
    /// The version that a document says it has.
    pub(crate) fn found(self, expected: &str) -> Result<String, DocumentError> {
        match self.version {
            Given::Value(version) => Ok(version),
            Given::Nothing => {
                let problem = format!("is missing, expected {expected:?}");
                Err(DocumentError::of_value(0, "version", &problem))
            }
            Given::Other(problem) => Err(DocumentError::of_value(0, "version", &problem)),
        }
    }
}

/// The value of a key.
#[derive(Default)]
pub(crate) enum Given<T> {
    /// Nothing: the key is missing.
    #[default]
    Nothing,
    /// A value of the wrong kind, with a description.
    Other(String),
    /// A value of the right kind.
    Value(T),
}

/// A kind of value, with its description.
pub(crate) trait Kind: DeserializeOwned {
    const EXPECTED: &'static str;
}

/// The keys of a mapping that no field took.
pub(crate) type Unknown = BTreeMap<String, IgnoredAny>;

/// Version 5. Version 4 was the predecessor's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct V5 {
    #[serde(rename = "version")]
    pub(crate) _version: IgnoredAny,
    #[serde(default)]
    pub(crate) name: Given<String>,
    #[serde(default)]
    pub(crate) image: Given<String>,
    #[serde(default)]
    pub(crate) attestation_variant: Given<String>,
    #[serde(default)]
    pub(crate) kubernetes_version: Given<String>,
    #[serde(default)]
    pub(crate) kubernetes_components_digest: Given<String>,
    #[serde(default)]
    pub(crate) mirror: Given<String>,
    #[serde(default, rename = "serviceCIDR")]
    pub(crate) service_cidr: Given<String>,
    #[serde(default)]
    pub(crate) node_groups: Given<Groups>,
    #[serde(default)]
    pub(crate) provider: Given<Provider>,
    #[serde(flatten)]
    pub(crate) unknown: Unknown,
}

pub(crate) type Groups = BTreeMap<String, Given<Group>>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Group {
    #[serde(default)]
    pub(crate) role: Given<String>,
    #[serde(default)]
    pub(crate) initial_count: Given<u64>,
    #[serde(default)]
    pub(crate) vcpus: Given<u64>,
    #[serde(default, rename = "memoryMiB")]
    pub(crate) memory_mib: Given<u64>,
    #[serde(default, rename = "stateDiskSizeGB")]
    pub(crate) state_disk_gb: Given<u64>,
    #[serde(flatten)]
    pub(crate) unknown: Unknown,
}

#[derive(Deserialize)]
pub(crate) struct Provider {
    #[serde(default)]
    pub(crate) qemu: Given<Qemu>,
    #[serde(flatten)]
    pub(crate) unknown: Unknown,
}

#[derive(Deserialize)]
pub(crate) struct Qemu {
    #[serde(default)]
    pub(crate) acceleration: Given<String>,
    #[serde(default)]
    pub(crate) firmware: Given<String>,
    #[serde(default)]
    pub(crate) flushes: Given<bool>,
    #[serde(flatten)]
    pub(crate) unknown: Unknown,
}

impl Kind for String {
    const EXPECTED: &'static str = "a string (put numbers and true/false in quotes)";
}

impl Kind for u64 {
    const EXPECTED: &'static str = "a whole number without sign or unit";
}

impl Kind for bool {
    const EXPECTED: &'static str = "true or false";
}

impl Kind for Groups {
    const EXPECTED: &'static str = "groups of nodes by name";
}

impl Kind for Group {
    const EXPECTED: &'static str = "the keys of a group: role, initialCount and others";
}

impl Kind for Provider {
    const EXPECTED: &'static str = "the section of one provider: qemu";
}

impl Kind for Qemu {
    const EXPECTED: &'static str = "the keys of this provider, or {} for the defaults";
}

impl<'de, T: Kind> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        // Serde's error messages are for programmers, so they are not used.
        Ok(match T::deserialize(&value) {
            Ok(value) => Self::Value(value),
            Err(_) => Self::Other(format!("is {}, expected {}", describe(&value), T::EXPECTED)),
        })
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a section".to_owned(),
        // As JSON it is on one line.
        scalar => scalar.to_string().chars().take(64).collect(),
    }
}
