use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cluster_objects::JoinConfig;
use cluster_policy::{BelievedPolicy, ClusterPolicy, Release};
use cluster_types::{ClusterId, KeyServicePublicKey, MeasurementSalt};
use kubernetes_components::ComponentList;
use measurements::ReferenceValues;
use operator_key::OperatorKey;
use test_machines::Technology;

/// A usable join configuration, of which tests change one thing.
#[derive(Clone)]
pub struct JoinConfigExample {
    /// The one image of the policy.
    pub image: ReferenceValues,
    /// Seed of the key that signs the policy.
    pub operator_seed: [u8; 32],
    /// The cluster that the policy is for.
    pub cluster: ClusterId,
    /// The policy's serial.
    pub serial: u64,
    /// Role grants with a lower serial are void.
    pub min_grant_serial: u64,
    /// What nodes install.
    pub components: ComponentList,
    /// Where they find it.
    pub component_mirror: &'static str,
    /// By which nodes know the key service.
    pub key_service_key: KeyServicePublicKey,
}

impl JoinConfigExample {
    /// Admits machines of this technology.
    ///
    /// # Panics
    /// Never: a list without components is one.
    #[must_use]
    pub fn of(technology: &dyn Technology) -> Self {
        let version = "v1.35.4".parse().expect("a version");
        Self {
            image: technology.image(),
            operator_seed: [6; 32],
            cluster: ClusterId::new([1; 32]),
            serial: 1,
            min_grant_serial: 0,
            components: ComponentList::new(version, Vec::new()).expect("a list"),
            component_mirror: "http://10.0.2.2:1/mirror",
            key_service_key: KeyServicePublicKey::new([7; 32]),
        }
    }

    /// Who signs the policy.
    #[must_use]
    pub fn operator(&self) -> OperatorKey {
        OperatorKey::from_seed(&self.operator_seed)
    }

    /// The signed policy.
    ///
    /// # Panics
    /// When a test made a policy that no one could parse.
    #[must_use]
    pub fn policy(&self) -> BelievedPolicy {
        let policy = ClusterPolicy {
            cluster: self.cluster,
            serial: self.serial,
            images: vec![self.image.clone()],
            releases: vec![Release::of(&self.components)],
            min_grant_serial: self.min_grant_serial,
            key_service: self.key_service_key,
        };
        BelievedPolicy::sign(&policy, &self.operator()).expect("a policy")
    }

    /// The configuration.
    ///
    /// # Panics
    /// Like [`policy`](Self::policy).
    #[must_use]
    pub fn config(&self) -> JoinConfig {
        JoinConfig {
            policy: self.policy().into_signed(),
            measurement_salt: SALT,
            api_server_endpoint: "10.42.1.100:6443".parse().expect("an address"),
            components: self.components.config_map_name(),
            component_mirror: self.component_mirror.into(),
        }
    }
}

/// The salt of the id of clusters in tests.
pub const SALT: MeasurementSalt = MeasurementSalt::new([5; 32]);

/// Writes the join configuration into a folder, as the kubelet mounts it.
///
/// # Errors
/// When a file cannot be written.
pub fn mount(config: &JoinConfig, folder: &Path) -> Result<()> {
    let object = config.to_config_map();
    for (key, value) in object.data.unwrap_or_default() {
        write(&folder.join(key), value.as_bytes())?;
    }
    for (key, value) in object.binary_data.unwrap_or_default() {
        write(&folder.join(key), &value.0)?;
    }
    Ok(())
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(path.parent().context("a file in no folder")?)?;
    Ok(fs::write(path, bytes)?)
}
