use std::collections::BTreeMap;
use std::fmt;

use cluster_types::{KubernetesVersion, NodeName, OperatorPublicKey, Variant};
use digest::Digest;
use infrastructure::NodeSpec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::names;

/// What a cluster was made from and cannot change yet. Recorded before the first machine is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MadeOf {
    /// The provider's key in the configuration.
    pub provider: String,
    /// The cluster's name.
    pub name: String,
    /// The Kubernetes release.
    pub kubernetes_version: KubernetesVersion,
    /// Digest of the list of the release's components, with where they come from and go to.
    pub components: String,
    /// Addresses of Services.
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: String,
    /// How nodes attest.
    pub attestation_variant: Variant,
    /// The document beside the node image: what every node must prove.
    pub reference_values: String,
    /// The operator's public key, which only one master secret gives; none before there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_key: Option<OperatorPublicKey>,
    /// The machines, as they were made.
    pub nodes: BTreeMap<NodeName, NodeSpec>,
}

/// Something that is not what the cluster was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key of the configuration, or the file.
    pub key: String,
    /// What the cluster has.
    pub was: String,
    /// What it should have now.
    pub wanted: String,
    /// What it would take.
    pub takes: &'static str,
}

const NEW_CLUSTER: &str = "it can be set only when a cluster is created";
const UPGRADE: &str = "this needs an upgrade of every node, which is not supported yet";
const NEW_MACHINE: &str = "this needs another machine for the node, which is not supported yet";

impl MadeOf {
    /// Everything that the cluster does not have as it is wanted now. Nodes that were added or taken away are no difference.
    #[must_use]
    pub fn differences(&self, wanted: &Self) -> Vec<Difference> {
        // A new field does not compile before it is compared here.
        let Self {
            provider,
            name,
            kubernetes_version,
            components,
            service_cidr,
            attestation_variant,
            reference_values,
            operator_key,
            nodes,
        } = self;
        let mut found = Differences::default();
        found.compare("provider", provider, &wanted.provider, NEW_CLUSTER);
        found.compare("name", name, &wanted.name, NEW_CLUSTER);
        found.compare(
            "kubernetesVersion",
            kubernetes_version,
            &wanted.kubernetes_version,
            UPGRADE,
        );
        if *kubernetes_version == wanted.kubernetes_version {
            found.compare("mirror", &list(components), &list(&wanted.components), UPGRADE);
        }
        found.compare("serviceCIDR", service_cidr, &wanted.service_cidr, NEW_CLUSTER);
        let variant = &wanted.attestation_variant;
        found.compare("attestationVariant", attestation_variant, variant, NEW_CLUSTER);
        let (was, wanted_values) = (canonical(reference_values), canonical(&wanted.reference_values));
        if was != wanted_values {
            found.add("image", measured(&was), measured(&wanted_values), UPGRADE);
        }
        if let (Some(was), Some(wanted)) = (operator_key, &wanted.operator_key) {
            found.compare(names::MASTER_SECRET, &secret(was), &secret(wanted), NEW_CLUSTER);
        }
        for (name, spec) in nodes {
            if let Some(wanted) = wanted.nodes.get(name) {
                found.compare_nodes(spec, wanted);
            }
        }
        found.0
    }
}

fn list(digest: &str) -> String {
    format!("a list of components with the digest {digest}")
}

/// What the document says, however it is laid out.
fn canonical(reference_values: &str) -> Value {
    serde_json::from_str(reference_values).unwrap_or_else(|_| reference_values.into())
}

fn measured(reference_values: &Value) -> String {
    let digest = Digest::of(reference_values.to_string().as_bytes());
    format!("the image with the reference values {digest}")
}

fn secret(operator_key: &OperatorPublicKey) -> String {
    format!("the secret of the operator's key {operator_key}")
}

#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn compare<T: fmt::Display + PartialEq>(&mut self, key: &str, was: &T, wanted: &T, takes: &'static str) {
        if was != wanted {
            self.add(key, was.to_string(), wanted.to_string(), takes);
        }
    }

    fn add(&mut self, key: &str, was: String, wanted: String, takes: &'static str) {
        self.0.push(Difference {
            key: key.to_owned(),
            was,
            wanted,
            takes,
        });
    }

    /// The group is a name for what follows here.
    fn compare_nodes(&mut self, was: &NodeSpec, wanted: &NodeSpec) {
        let NodeSpec {
            name,
            role,
            group: _,
            vcpus,
            memory_mib,
            state_disk_gb,
        } = was;
        let key = |key: &str| format!("nodeGroups.{}.{key} of {name}", wanted.group);
        self.compare(&key("role"), role, &wanted.role, NEW_MACHINE);
        self.compare(&key("vcpus"), vcpus, &wanted.vcpus, NEW_MACHINE);
        self.compare(&key("memoryMiB"), memory_mib, &wanted.memory_mib, NEW_MACHINE);
        self.compare(
            &key("stateDiskSizeGB"),
            state_disk_gb,
            &wanted.state_disk_gb,
            NEW_MACHINE,
        );
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            was,
            wanted,
            takes,
        } = self;
        write!(
            f,
            "{key}: the cluster was created with {was}, but the workspace now has {wanted}; {takes}"
        )
    }
}

#[cfg(test)]
mod tests {
    use cluster_types::NodeRole;

    use super::*;

    fn made_of() -> MadeOf {
        let node = |name: &str, role| NodeSpec {
            name: name.parse().unwrap(),
            role,
            group: "g".to_owned(),
            vcpus: 2,
            memory_mib: 2048,
            state_disk_gb: 20,
        };
        let nodes = [
            node("control-plane-0", NodeRole::ControlPlane),
            node("worker-0", NodeRole::Worker),
        ];
        MadeOf {
            provider: "qemu".to_owned(),
            name: "mini".to_owned(),
            kubernetes_version: "v1.35.4".parse().unwrap(),
            components: "ab".to_owned(),
            service_cidr: "10.96.0.0/12".to_owned(),
            attestation_variant: Variant::QemuVtpm,
            reference_values: "{}".to_owned(),
            operator_key: Some(OperatorPublicKey::new([0xcd; 32])),
            nodes: nodes.into_iter().map(|node| (node.name.clone(), node)).collect(),
        }
    }

    /// Changes one thing and expects this one difference.
    fn check(key: &str, change: impl FnOnce(&mut MadeOf)) {
        let mut wanted = made_of();
        change(&mut wanted);
        let differences = made_of().differences(&wanted);
        let [difference] = differences.as_slice() else {
            panic!("{key}: {differences:?}")
        };
        assert_eq!(difference.key, key);
        assert_ne!(difference.was, difference.wanted);
    }

    fn worker(made_of: &mut MadeOf) -> &mut NodeSpec {
        made_of.nodes.get_mut(&"worker-0".parse::<NodeName>().unwrap()).unwrap()
    }

    #[test]
    fn each_change_is_one_difference_that_names_it() {
        check("provider", |wanted| wanted.provider = "cloud".to_owned());
        check("name", |wanted| wanted.name = "other".to_owned());
        check("mirror", |wanted| wanted.components = "ef".to_owned());
        check("serviceCIDR", |wanted| wanted.service_cidr = "10.100.0.0/16".to_owned());
        check("image", |wanted| wanted.reference_values = r#"{"a":1}"#.to_owned());
        check("constellation-mastersecret.json", |wanted| {
            wanted.operator_key = Some(OperatorPublicKey::new([0xef; 32]))
        });
        check("nodeGroups.g.vcpus of worker-0", |wanted| worker(wanted).vcpus = 4);
        check("nodeGroups.g.memoryMiB of worker-0", |wanted| {
            worker(wanted).memory_mib = 4096
        });
        check("nodeGroups.g.stateDiskSizeGB of worker-0", |wanted| {
            worker(wanted).state_disk_gb = 40
        });
        check("nodeGroups.g.role of worker-0", |wanted| {
            worker(wanted).role = NodeRole::ControlPlane
        });
    }

    #[test]
    fn reference_values_in_another_layout_are_the_same() {
        let (mut one, mut other) = (made_of(), made_of());
        one.reference_values = r#"{"a":1,"b":2}"#.to_owned();
        other.reference_values = "{ \"b\": 2,\n\"a\": 1 }\n".to_owned();
        assert_eq!(one.differences(&other), []);
    }

    #[test]
    fn another_release_has_other_components() {
        check("kubernetesVersion", |wanted| {
            wanted.kubernetes_version = "v1.35.5".parse().unwrap();
            wanted.components = "ef".to_owned();
        });
    }

    #[test]
    fn nodes_come_and_go() {
        let mut fewer = made_of();
        fewer.nodes.pop_last();
        assert_eq!(made_of().differences(&fewer), []);
        assert_eq!(fewer.differences(&made_of()), []);
        let mut renamed = made_of();
        worker(&mut renamed).group = "other".to_owned();
        assert_eq!(made_of().differences(&renamed), []);
    }
}
