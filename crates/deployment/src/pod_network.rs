//! The pod network: flannel with the kernel's WireGuard, so that traffic between pods never crosses a wire in plaintext.
//! The image comes from the mirror and is pinned by hash, like every component.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use cluster_types::{Cidr, NodeInterface, Service};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMap, ConfigMapVolumeSource, Container, EnvVar, EnvVarSource, ObjectFieldSelector,
    PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile, SecurityContext, ServiceAccount, Toleration, Volume,
    VolumeMount,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ObjectMeta;

use crate::Object;
use crate::volumes::host_path;

/// Name of the image in the mirror.
const IMAGE: &str = "ghcr.io/flannel-io/flannel:v0.28.10";
pub(crate) const NAME: &str = "flannel";
const CONFIG: &str = "flannel-config";
const CLUSTER_ROLE: &str = "constellation:flannel";

/// What is different in each cluster.
#[derive(Clone, Copy, Debug)]
pub struct PodNetwork {
    /// Addresses of pods.
    pub pods: Cidr,
    /// The card that leads to the other nodes.
    pub node_interface: NodeInterface,
    /// Where nodes reach the API server. flanneld uses it directly: the Service's address works only once kube-proxy does.
    pub api_server: SocketAddrV4,
}

/// Everything the pod network needs, in the order in which it is applied.
#[must_use]
pub(crate) fn pod_network(network: &PodNetwork) -> Vec<Object> {
    vec![
        Object::new(ServiceAccount {
            metadata: named(NAME),
            ..ServiceAccount::default()
        }),
        Object::new(role()),
        Object::new(role_binding()),
        Object::new(config(network)),
        Object::new(daemon_set(network)),
    ]
}

/// flanneld reads every Node's public key and address, and writes its own into annotations.
fn role() -> ClusterRole {
    let rule = |resource: &str, verbs: &[&str]| PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec![resource.into()]),
        verbs: verbs.iter().map(|&verb| verb.into()).collect(),
        ..PolicyRule::default()
    };
    ClusterRole {
        metadata: ObjectMeta {
            name: Some(CLUSTER_ROLE.into()),
            ..ObjectMeta::default()
        },
        rules: Some(vec![
            rule("pods", &["get"]),
            rule("nodes", &["get", "list", "watch"]),
            rule("nodes/status", &["patch"]),
        ]),
        ..ClusterRole::default()
    }
}

fn role_binding() -> ClusterRoleBinding {
    ClusterRoleBinding {
        metadata: ObjectMeta {
            name: Some(CLUSTER_ROLE.into()),
            ..ObjectMeta::default()
        },
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "ClusterRole".into(),
            name: CLUSTER_ROLE.into(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: NAME.into(),
            namespace: Some(Service::NAMESPACE.into()),
            ..Subject::default()
        }]),
    }
}

fn config(network: &PodNetwork) -> ConfigMap {
    let net_conf = serde_json::json!({
        "Network": network.pods.to_string(),
        "EnableIPv4": true,
        "Backend": { "Type": "wireguard" },
    });
    ConfigMap {
        metadata: named(CONFIG),
        data: Some(BTreeMap::from([("net-conf.json".to_owned(), net_conf.to_string())])),
        ..ConfigMap::default()
    }
}

fn daemon_set(network: &PodNetwork) -> DaemonSet {
    let labels = BTreeMap::from([("k8s-app".to_owned(), NAME.to_owned())]);
    DaemonSet {
        metadata: ObjectMeta {
            labels: Some(labels.clone()),
            ..named(NAME)
        },
        spec: Some(DaemonSetSpec {
            selector: LabelSelector {
                match_labels: Some(labels.clone()),
                ..LabelSelector::default()
            },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(network)),
            },
            ..DaemonSetSpec::default()
        }),
        ..DaemonSet::default()
    }
}

fn pod(network: &PodNetwork) -> PodSpec {
    PodSpec {
        host_network: Some(true),
        security_context: Some(PodSecurityContext {
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        priority_class_name: Some("system-node-critical".into()),
        service_account_name: Some(NAME.into()),
        tolerations: Some(vec![Toleration {
            operator: Some("Exists".into()),
            ..Toleration::default()
        }]),
        containers: vec![container(network)],
        volumes: Some(vec![
            host_path("run", "/run/flannel", "DirectoryOrCreate"),
            host_path("xtables-lock", "/run/xtables.lock", "FileOrCreate"),
            Volume {
                name: "config".into(),
                config_map: Some(ConfigMapVolumeSource {
                    name: CONFIG.into(),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            },
        ]),
        ..PodSpec::default()
    }
}

fn container(network: &PodNetwork) -> Container {
    Container {
        name: NAME.into(),
        image: Some(IMAGE.into()),
        // Imported after its hash was checked. A registry would be another source, without a check.
        image_pull_policy: Some("Never".into()),
        command: Some(vec!["/opt/bin/flanneld".into()]),
        args: Some(vec![
            "--ip-masq".into(),
            "--kube-subnet-mgr".into(),
            // Each time, flanneld starts a dozen programs to see whether its packet filter rules are still there. With the default of
            // 5 seconds that takes an eighth of a processor on an emulated machine.
            "--iptables-resync=60".into(),
            format!("--iface-regex=^{}$", network.node_interface),
        ]),
        env: Some(vec![
            from_field("POD_NAME", "metadata.name"),
            from_field("POD_NAMESPACE", "metadata.namespace"),
            variable("KUBERNETES_SERVICE_HOST", network.api_server.ip()),
            variable("KUBERNETES_SERVICE_PORT", network.api_server.port()),
        ]),
        // flanneld creates interfaces, routes and packet filter rules on the node.
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                add: Some(vec!["NET_ADMIN".into(), "NET_RAW".into()]),
                drop: Some(vec!["ALL".into()]),
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            mount("run", "/run/flannel"),
            mount("xtables-lock", "/run/xtables.lock"),
            mount("config", "/etc/kube-flannel"),
        ]),
        ..Container::default()
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(Service::NAMESPACE.into()),
        ..ObjectMeta::default()
    }
}

fn variable(name: &str, value: impl ToString) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: Some(value.to_string()),
        ..EnvVar::default()
    }
}

fn from_field(name: &str, path: &str) -> EnvVar {
    let field_ref = ObjectFieldSelector {
        field_path: path.into(),
        ..ObjectFieldSelector::default()
    };
    let source = EnvVarSource {
        field_ref: Some(field_ref),
        ..EnvVarSource::default()
    };
    EnvVar {
        name: name.into(),
        value_from: Some(source),
        ..EnvVar::default()
    }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        ..VolumeMount::default()
    }
}
