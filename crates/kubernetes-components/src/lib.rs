//! The files a Kubernetes version consists of, and the two documents that list them: `components.json` at the root of
//! a mirror, and the ConfigMap `k8s-components-sha256-…` of a running cluster.
//!
//! Every component has a hash; neither document has a form without one. This crate fetches and installs nothing.

mod component;
mod config_map;
mod list;
mod mirror;

pub use component::{Component, ComponentUrl, InstallPath, ParseComponentUrlError, ParseInstallPathError};
pub use config_map::ParseConfigMapError;
pub use list::{ComponentList, InvalidListError, components_hash};
pub use mirror::{MAX_DOCUMENT_LEN, MIRROR_DOCUMENT, ParseMirrorError};
