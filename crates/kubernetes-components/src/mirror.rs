//! The list as the document at the root of a mirror.

use cluster_types::KubernetesVersion;
use document::DocumentError;
use serde::{Deserialize, Serialize};

use crate::{Component, ComponentList, InvalidListError};

/// The name of the document at a mirror's root.
pub const MIRROR_DOCUMENT: &str = "components.json";

/// Longer documents are refused, in bytes. Ours has about 4 KiB.
pub const MAX_DOCUMENT_LEN: usize = 1 << 20;

/// Bytes that are not a mirror document.
#[derive(Debug, thiserror::Error)]
pub enum ParseMirrorError {
    /// It is longer than [`MAX_DOCUMENT_LEN`].
    #[error("the document has {0} bytes, at most {MAX_DOCUMENT_LEN} are read")]
    TooLong(usize),
    /// It is not JSON of the expected form.
    #[error("the document is malformed")]
    Json(#[from] DocumentError),
    /// Each component is valid, but together they are not.
    #[error("the components do not form a valid list")]
    List(#[from] InvalidListError),
}

impl ComponentList {
    /// Renders the mirror document, in a form that people can read.
    #[must_use]
    pub fn to_mirror_document(&self) -> Vec<u8> {
        let document = Document {
            version: DocumentVersion::V1,
            kubernetes_version: self.kubernetes_version().clone(),
            components: self.components().to_vec(),
        };
        let mut bytes = serde_json::to_vec_pretty(&document).expect("the document has text keys only");
        bytes.push(b'\n');
        bytes
    }

    /// Parses a mirror document.
    ///
    /// # Errors
    /// When it is too long, malformed or of another version, or lists two files for one path.
    ///
    /// # Security
    /// The document is only as trustworthy as its source: a caller that makes a node install a list has to pin its
    /// [`hash`](Self::hash).
    pub fn from_mirror_document(bytes: &[u8]) -> Result<Self, ParseMirrorError> {
        if bytes.len() > MAX_DOCUMENT_LEN {
            return Err(ParseMirrorError::TooLong(bytes.len()));
        }
        let document: Document = document::from_json(bytes)?;
        Ok(Self::new(document.kubernetes_version, document.components)?)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: DocumentVersion,
    kubernetes_version: KubernetesVersion,
    components: Vec<Component>,
}

#[derive(Serialize, Deserialize)]
enum DocumentVersion {
    #[serde(rename = "v1")]
    V1,
}
