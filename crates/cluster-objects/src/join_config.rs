use std::collections::BTreeMap;
use std::path::Path;

use cluster_types::key_service::KeyServicePublicKey;
use cluster_types::{HostPort, KubernetesVersion, MeasurementSalt, OperatorPublicKey, Service, Variant};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;
use measurements::ReferenceValues;

/// Name of the ConfigMap.
pub const JOIN_CONFIG: &str = "join-config";

/// What the join service needs to know about its cluster. The CLI writes it, and it is mounted into the join service as files.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinConfig {
    /// The image that a joining node must have booted.
    pub reference_values: ReferenceValues,
    /// The salt of the cluster id, which is part of every ticket.
    pub measurement_salt: MeasurementSalt,
    /// The operator's key, which signs role grants.
    pub operator_key: OperatorPublicKey,
    /// The public key of the key service.
    pub key_service_key: KeyServicePublicKey,
    /// The API server's address for nodes.
    pub api_server_endpoint: HostPort,
    /// The version that joining nodes install.
    pub kubernetes_version: KubernetesVersion,
    /// The name of the ConfigMap that lists that version's components.
    pub components: String,
    /// Base address of the mirror for relative component URLs. Empty without a mirror.
    pub component_mirror: String,
}

/// A folder of mounted files that is not a usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadJoinConfigError {
    /// A file cannot be read.
    #[error("{key} of the join configuration cannot be read")]
    Read {
        /// The key of the ConfigMap, which is the name of the file.
        key: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file's content is invalid.
    #[error("{key} of the join configuration is invalid: {reason}")]
    Invalid {
        /// The key of the ConfigMap, which is the name of the file.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

const VARIANT: &str = "attestationVariant";
const REFERENCE_VALUES: &str = "referenceValues";
const MEASUREMENT_SALT: &str = "measurementSalt";
const OPERATOR_KEY: &str = "operatorPublicKey";
const KEY_SERVICE_KEY: &str = "keyServicePublicKey";
const API_SERVER_ENDPOINT: &str = "apiServerEndpoint";
const KUBERNETES_VERSION: &str = "kubernetesVersion";
const COMPONENTS: &str = "components";
const COMPONENT_MIRROR: &str = "componentMirror";
/// Followed by the hash of the list.
const COMPONENTS_PREFIX: &str = "k8s-components-";

impl JoinConfig {
    /// Renders the ConfigMap.
    #[must_use]
    pub fn to_config_map(&self) -> ConfigMap {
        let data = [
            (VARIANT, self.variant().to_string()),
            (REFERENCE_VALUES, self.reference_values.to_json()),
            (OPERATOR_KEY, self.operator_key.to_string()),
            (KEY_SERVICE_KEY, self.key_service_key.to_string()),
            (API_SERVER_ENDPOINT, self.api_server_endpoint.to_string()),
            (KUBERNETES_VERSION, self.kubernetes_version.to_string()),
            (COMPONENTS, self.components.clone()),
            (COMPONENT_MIRROR, self.component_mirror.clone()),
        ];
        let salt = ByteString(self.measurement_salt.as_bytes().to_vec());
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(JOIN_CONFIG.into()),
                namespace: Some(Service::NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            binary_data: Some(BTreeMap::from([(MEASUREMENT_SALT.to_owned(), salt)])),
            ..ConfigMap::default()
        }
    }

    /// How joining nodes attest.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.reference_values.variant()
    }

    /// Reads the folder at which the ConfigMap is mounted.
    ///
    /// # Errors
    /// When a file is missing or invalid.
    pub fn load(folder: &Path) -> Result<Self, LoadJoinConfigError> {
        let bytes = |key| std::fs::read(folder.join(key)).map_err(|source| LoadJoinConfigError::Read { key, source });
        let text = |key| String::from_utf8(bytes(key)?).map_err(|error| invalid(key, error));
        let mut operator_key = [0; 32];
        hex::decode_to_slice(text(OPERATOR_KEY)?.trim(), &mut operator_key)
            .map_err(|error| invalid(OPERATOR_KEY, error))?;
        let variant = text(VARIANT)?.trim().parse().map_err(|error| invalid(VARIANT, error))?;
        Ok(Self {
            reference_values: ReferenceValues::parse_for(variant, &bytes(REFERENCE_VALUES)?)
                .map_err(|error| invalid(REFERENCE_VALUES, error_report::Chain(&error)))?,
            measurement_salt: MeasurementSalt::try_from(bytes(MEASUREMENT_SALT)?.as_slice())
                .map_err(|error| invalid(MEASUREMENT_SALT, error))?,
            operator_key: OperatorPublicKey::new(operator_key),
            key_service_key: text(KEY_SERVICE_KEY)?
                .trim()
                .parse()
                .map_err(|error| invalid(KEY_SERVICE_KEY, error))?,
            api_server_endpoint: text(API_SERVER_ENDPOINT)?
                .parse()
                .map_err(|error| invalid(API_SERVER_ENDPOINT, error))?,
            kubernetes_version: text(KUBERNETES_VERSION)?
                .trim()
                .parse()
                .map_err(|error| invalid(KUBERNETES_VERSION, error))?,
            components: check_components(text(COMPONENTS)?)?,
            component_mirror: check_mirror(text(COMPONENT_MIRROR)?)?,
        })
    }
}

fn check_components(text: String) -> Result<String, LoadJoinConfigError> {
    let is_plain = |hash: &str| !hash.is_empty() && hash.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    if text.strip_prefix(COMPONENTS_PREFIX).is_some_and(is_plain) {
        Ok(text)
    } else {
        Err(invalid(
            COMPONENTS,
            format!("expected the name of a ConfigMap that starts with {COMPONENTS_PREFIX}"),
        ))
    }
}

fn check_mirror(text: String) -> Result<String, LoadJoinConfigError> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let is_http = rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['));
    let plain = |c: u8| c.is_ascii_graphic() && !b"?#".contains(&c);
    if text.is_empty() || is_http && text.bytes().all(plain) {
        Ok(text)
    } else {
        Err(invalid(
            COMPONENT_MIRROR,
            "expected an http(s) address or an empty value",
        ))
    }
}

fn invalid(key: &'static str, reason: impl ToString) -> LoadJoinConfigError {
    LoadJoinConfigError::Invalid {
        key,
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> JoinConfig {
        JoinConfig {
            reference_values: ReferenceValues::new(Variant::ALL[0], "image", &[4]),
            measurement_salt: MeasurementSalt::new([1; 32]),
            operator_key: OperatorPublicKey::new([2; 32]),
            key_service_key: KeyServicePublicKey::new([3; 32]),
            api_server_endpoint: "10.42.1.100:6443".parse().unwrap(),
            kubernetes_version: "v1.35.4".parse().unwrap(),
            components: "k8s-components-sha256-aa".into(),
            component_mirror: "http://10.0.2.2:1234/mirror".into(),
        }
    }

    /// The files that the kubelet makes of the ConfigMap.
    fn mount(config: &ConfigMap) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (key, value) in config.data.iter().flatten() {
            std::fs::write(folder.path().join(key), value).unwrap();
        }
        for (key, value) in config.binary_data.iter().flatten() {
            std::fs::write(folder.path().join(key), &value.0).unwrap();
        }
        folder
    }

    #[test]
    fn survives_being_mounted() {
        let folder = mount(&example().to_config_map());
        assert_eq!(JoinConfig::load(folder.path()).unwrap(), example());
    }

    #[test]
    fn each_missing_or_broken_key_is_named() {
        let folder = mount(&example().to_config_map());
        for key in [
            VARIANT,
            REFERENCE_VALUES,
            MEASUREMENT_SALT,
            OPERATOR_KEY,
            KEY_SERVICE_KEY,
            API_SERVER_ENDPOINT,
            KUBERNETES_VERSION,
            COMPONENTS,
            COMPONENT_MIRROR,
        ] {
            let path = folder.path().join(key);
            let good = std::fs::read(&path).unwrap();
            std::fs::write(&path, "nonsense").unwrap();
            let error = JoinConfig::load(folder.path()).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("invalid"), "{error}");
            std::fs::remove_file(&path).unwrap();
            let error = JoinConfig::load(folder.path()).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("cannot be read"), "{error}");
            std::fs::write(&path, good).unwrap();
        }
    }
}
