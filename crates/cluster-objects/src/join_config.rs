use std::path::Path;

use cluster_policy::SignedPolicy;
use cluster_types::{HostPort, MeasurementSalt, Service};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;

/// Name of the ConfigMap.
pub const JOIN_CONFIG: &str = "join-config";

/// What the join service needs to know about its cluster. The first node creates it, the CLI replaces it, and it is mounted into the join service as files.
///
/// # Security
/// Cluster-admins can write it. Which images are admitted and what nodes install is in the policy, which counts only if the operator
/// signed it; the salt must give the policy's cluster. Of the rest, a wrong value makes joining fail.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinConfig {
    /// Whom to admit, and what joining nodes install.
    pub policy: SignedPolicy,
    /// The salt of the cluster id, which is part of every ticket. The policy names the id.
    pub measurement_salt: MeasurementSalt,
    /// The API server's address for nodes.
    pub api_server_endpoint: HostPort,
    /// The name of the ConfigMap with the list of components that joining nodes install. The policy has its digest.
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

/// The key of the ConfigMap with the signed policy.
pub const CLUSTER_POLICY: &str = "clusterPolicy";
const MEASUREMENT_SALT: &str = "measurementSalt";
const API_SERVER_ENDPOINT: &str = "apiServerEndpoint";
const COMPONENTS: &str = "components";
const COMPONENT_MIRROR: &str = "componentMirror";
/// Followed by the hash of the list.
const COMPONENTS_PREFIX: &str = "k8s-components-";

impl JoinConfig {
    /// Renders the ConfigMap.
    #[must_use]
    pub fn to_config_map(&self) -> ConfigMap {
        let data = [
            (API_SERVER_ENDPOINT, self.api_server_endpoint.to_string()),
            (COMPONENTS, self.components.clone()),
            (COMPONENT_MIRROR, self.component_mirror.clone()),
        ];
        let binary_data = [
            (CLUSTER_POLICY, self.policy.as_bytes().to_vec()),
            (MEASUREMENT_SALT, self.measurement_salt.as_bytes().to_vec()),
        ];
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(JOIN_CONFIG.into()),
                namespace: Some(Service::NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            binary_data: Some(
                binary_data
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), ByteString(value)))
                    .collect(),
            ),
            ..ConfigMap::default()
        }
    }

    /// Reads the folder at which the ConfigMap is mounted.
    ///
    /// # Errors
    /// When a file is missing or invalid.
    pub fn load(folder: &Path) -> Result<Self, LoadJoinConfigError> {
        let bytes = |key| std::fs::read(folder.join(key)).map_err(|source| LoadJoinConfigError::Read { key, source });
        let text = |key| String::from_utf8(bytes(key)?).map_err(|error| invalid(key, error));
        Ok(Self {
            policy: SignedPolicy::parse(&bytes(CLUSTER_POLICY)?)
                .map_err(|error| invalid(CLUSTER_POLICY, error_report::Chain(&error)))?,
            measurement_salt: MeasurementSalt::try_from(bytes(MEASUREMENT_SALT)?.as_slice())
                .map_err(|error| invalid(MEASUREMENT_SALT, error))?,
            api_server_endpoint: text(API_SERVER_ENDPOINT)?
                .parse()
                .map_err(|error| invalid(API_SERVER_ENDPOINT, error))?,
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
    use cluster_policy::{BelievedPolicy, ClusterPolicy, Release};
    use cluster_types::{ClusterId, KeyServicePublicKey, Variant};
    use digest::Digest;
    use measurements::ReferenceValues;
    use operator_key::OperatorKey;

    use super::*;

    fn example() -> JoinConfig {
        let policy = ClusterPolicy {
            cluster: ClusterId::new([2; 32]),
            serial: 1,
            images: vec![ReferenceValues::new(Variant::ALL[0], "image", &[4])],
            releases: vec![Release {
                version: "v1.35.4".parse().unwrap(),
                components: Digest::new([4; 32]),
            }],
            min_grant_serial: 0,
            key_service: KeyServicePublicKey::new([3; 32]),
        };
        let signed = BelievedPolicy::sign(&policy, &OperatorKey::from_seed(&[5; 32]));
        JoinConfig {
            policy: signed.unwrap().into_signed(),
            measurement_salt: MeasurementSalt::new([1; 32]),
            api_server_endpoint: "10.42.1.100:6443".parse().unwrap(),
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
            CLUSTER_POLICY,
            MEASUREMENT_SALT,
            API_SERVER_ENDPOINT,
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
