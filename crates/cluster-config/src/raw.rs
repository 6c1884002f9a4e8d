//! The configuration as serde sees it: the right shape, the values not yet checked.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The one version that is read.
pub(crate) const VERSION: &str = "v5";

/// Only the version, to tell an old file from a wrong one.
#[derive(Deserialize)]
pub(crate) struct Versioned {
    pub(crate) version: Option<String>,
}

/// Version 5. Version 4 was the predecessor's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct V5 {
    #[serde(rename = "version")]
    pub(crate) _version: String,
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) kubernetes_version: String,
    pub(crate) mirror: String,
    #[serde(rename = "serviceCIDR")]
    pub(crate) service_cidr: Option<String>,
    pub(crate) node_groups: BTreeMap<String, Group>,
    pub(crate) provider: Provider,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Group {
    pub(crate) role: String,
    pub(crate) initial_count: u32,
    pub(crate) vcpus: Option<u32>,
    #[serde(rename = "memoryMiB")]
    pub(crate) memory_mib: Option<u32>,
    #[serde(rename = "stateDiskSizeGB")]
    pub(crate) state_disk_gb: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Provider {
    pub(crate) qemu: Option<Qemu>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Qemu {
    pub(crate) acceleration: Option<String>,
    pub(crate) firmware: Option<String>,
}

/// A document of the wrong shape: where, and what is wrong there.
#[derive(Debug)]
pub(crate) struct ShapeError {
    pub(crate) path: String,
    pub(crate) message: String,
}

/// Reads YAML and keeps the path to what cannot be read.
pub(crate) fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T, ShapeError> {
    let mut path = String::new();
    serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    })
    .map_err(|error: serde_saphyr::Error| ShapeError {
        message: error.without_snippet().to_string(),
        path,
    })
}
