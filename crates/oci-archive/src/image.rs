//! The JSON documents of an image (OCI image spec 1.1). They are defined here, and not taken from a library, because their
//! keys must have a fixed order: hash maps would give other bytes on each run.

use std::collections::BTreeMap;

use digest::{Digest, oci};
use serde::Serialize;

use crate::{ImageName, Layer};

/// A container image to write to an archive.
#[derive(Clone, Debug)]
pub struct Image {
    /// The name and tag under which it is imported.
    pub name: ImageName,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
    /// How its layers are stored.
    pub compression: Compression,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Its environment variables.
    pub env: BTreeMap<String, String>,
    /// The user, as a number or `user:group`; empty means root.
    pub user: String,
    /// Labels of the image's configuration.
    pub labels: BTreeMap<String, String>,
}

/// How layers are stored in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Uncompressed, for archives in a compressed file system.
    None,
    /// Compressed with Zstandard, which containerd reads since version 1.5.
    Zstd,
}

impl Image {
    /// An image of these layers in which only name and program are set.
    #[must_use]
    pub fn new(name: ImageName, layers: Vec<Layer>, entrypoint: &[&str]) -> Self {
        Self {
            name,
            layers,
            compression: Compression::Zstd,
            entrypoint: entrypoint.iter().map(|&part| part.to_owned()).collect(),
            env: BTreeMap::new(),
            user: String::new(),
            labels: BTreeMap::new(),
        }
    }

    /// The configuration document; `diff_ids` are the digests of the layers before compression.
    pub(crate) fn config_json(&self, diff_ids: &[Digest]) -> Vec<u8> {
        let document = ConfigDocument {
            architecture: ARCHITECTURE,
            config: ProcessConfig {
                entrypoint: &self.entrypoint,
                env: self.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
                labels: &self.labels,
                user: &self.user,
            },
            created: "1970-01-01T00:00:00Z",
            os: "linux",
            rootfs: RootFs {
                diff_ids: diff_ids.iter().map(oci::format).collect(),
                kind: "layers",
            },
        };
        to_json(&document)
    }

    /// The manifest that names configuration and layers.
    pub(crate) fn manifest_json(&self, config: Descriptor, layers: Vec<Descriptor>) -> Vec<u8> {
        to_json(&Manifest {
            config,
            layers,
            media_type: MANIFEST,
            schema_version: 2,
        })
    }

    /// The index, which gives the manifest its name.
    pub(crate) fn index_json(&self, manifest: Descriptor) -> Vec<u8> {
        let annotations = BTreeMap::from([
            // `ctr images import` names the image by this one; other tools use the next.
            ("io.containerd.image.name", self.name.to_string()),
            ("org.opencontainers.image.ref.name", self.name.tag().to_owned()),
        ]);
        let platform = Some(Platform {
            architecture: ARCHITECTURE,
            os: "linux",
        });
        to_json(&Index {
            manifests: [Descriptor {
                annotations,
                platform,
                ..manifest
            }],
            media_type: "application/vnd.oci.image.index.v1+json",
            schema_version: 2,
        })
    }
}

impl Compression {
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const ARCHITECTURE: &str = "amd64";

/// Names a blob by its digest.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
    digest: String,
    media_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    size: u64,
}

impl Descriptor {
    pub(crate) fn new(media_type: &'static str, digest: Digest, size: u64) -> Self {
        Self {
            annotations: BTreeMap::new(),
            digest: oci::format(&digest),
            media_type,
            platform: None,
            size,
        }
    }
}

#[derive(Serialize)]
struct Platform {
    architecture: &'static str,
    os: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: [Descriptor; 1],
    media_type: &'static str,
    schema_version: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
    media_type: &'static str,
    schema_version: u32,
}

#[derive(Serialize)]
struct ConfigDocument<'a> {
    architecture: &'static str,
    config: ProcessConfig<'a>,
    created: &'static str,
    os: &'static str,
    rootfs: RootFs,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ProcessConfig<'a> {
    entrypoint: &'a [String],
    env: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
}

#[derive(Serialize)]
struct RootFs {
    diff_ids: Vec<String>,
    #[serde(rename = "type")]
    kind: &'static str,
}

fn to_json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("these documents have text keys only")
}
