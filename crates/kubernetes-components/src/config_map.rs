//! The list as an immutable ConfigMap in `kube-system`.

use serde::Deserialize;

use crate::{Component, ComponentList, InvalidListError};

/// A ConfigMap's data is not a component list.
#[derive(Debug, thiserror::Error)]
pub enum ParseConfigMapError {
    /// The key `components` is not a JSON array of components.
    #[error("key \"components\" is not an array of components with URL, hash and install path")]
    Components(#[from] serde_json::Error),
    /// The key `cluster-version` is not a Kubernetes version.
    #[error("key \"cluster-version\" is invalid")]
    Version(#[from] cluster_types::ParseKubernetesVersionError),
    /// Each component is valid, but together they are not.
    #[error("the components do not form a valid list")]
    List(#[from] InvalidListError),
    /// The name has another hash than the components.
    #[error("the ConfigMap is named {named:?}, but its components give the name {computed:?}")]
    Name {
        /// The name it was found under.
        named: String,
        /// The name that its components give.
        computed: String,
    },
}

impl ComponentList {
    /// The ConfigMap's name, which contains the list's hash.
    #[must_use]
    pub fn config_map_name(&self) -> String {
        format!("k8s-components-{}", self.hash().replace(':', "-"))
    }

    /// The value of the ConfigMap's key `components`; the other key, `cluster-version`, is the Kubernetes version.
    #[must_use]
    pub fn config_map_components(&self) -> String {
        serde_json::to_string(self.components()).expect("components have text keys only")
    }

    /// Parses a ConfigMap from its name and its two data keys.
    ///
    /// # Errors
    /// When a key is malformed, or the name does not match these components.
    pub fn from_config_map(name: &str, components: &str, cluster_version: &str) -> Result<Self, ParseConfigMapError> {
        let components: Vec<RawComponent> = serde_json::from_str(components)?;
        let components = components
            .into_iter()
            .map(Component::try_from)
            .collect::<Result<_, _>>()?;
        let list = Self::new(cluster_version.parse()?, components)?;
        let computed = list.config_map_name();
        if name == computed {
            Ok(list)
        } else {
            Err(ParseConfigMapError::Name {
                named: name.to_owned(),
                computed,
            })
        }
    }
}

/// A component as any release wrote it. Old releases wrote keys with capital letters; such a key counts where the new one
/// is empty.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawComponent {
    url: String,
    hash: String,
    install_path: String,
    extract: bool,
    #[serde(rename = "URL")]
    legacy_url: String,
    #[serde(rename = "Hash")]
    legacy_hash: String,
    #[serde(rename = "InstallPath")]
    legacy_install_path: String,
    #[serde(rename = "Extract")]
    legacy_extract: bool,
}

impl TryFrom<RawComponent> for Component {
    type Error = serde_json::Error;

    fn try_from(raw: RawComponent) -> Result<Self, Self::Error> {
        use serde::de::Error;
        let either = |new: String, legacy: String| if new.is_empty() { legacy } else { new };
        Ok(Self {
            url: either(raw.url, raw.legacy_url).parse().map_err(Self::Error::custom)?,
            hash: digest::oci::parse(&either(raw.hash, raw.legacy_hash)).map_err(Self::Error::custom)?,
            install_path: either(raw.install_path, raw.legacy_install_path)
                .parse()
                .map_err(Self::Error::custom)?,
            extract: raw.extract || raw.legacy_extract,
        })
    }
}
