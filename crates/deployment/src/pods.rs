use std::collections::BTreeMap;

use cluster_objects::JOIN_CONFIG;
use cluster_types::Service;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, GRPCAction, PodSecurityContext, PodSpec,
    PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ObjectMeta;

use crate::volumes::host_path;

const HEALTH_PORT: i32 = 8090;
const METRICS_PORT: i32 = 8091;
/// Where the attestation daemon makes its sockets, a folder for each service.
const ATTESTATION_SOCKETS: &str = "/run/constellation/attestation";
/// None of the keys that lie beside it.
const API_SERVER_CERTIFICATE: &str = "/etc/kubernetes/pki/apiserver.crt";
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

pub(super) fn labels(service: Service) -> BTreeMap<String, String> {
    BTreeMap::from([("k8s-app".into(), service.name().into())])
}

pub(super) fn daemon_set(service: Service) -> DaemonSet {
    DaemonSet {
        metadata: ObjectMeta {
            name: Some(service.name().into()),
            namespace: Some(Service::NAMESPACE.into()),
            labels: Some(labels(service)),
            ..ObjectMeta::default()
        },
        spec: Some(DaemonSetSpec {
            selector: LabelSelector {
                match_labels: Some(labels(service)),
                ..LabelSelector::default()
            },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(service)),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(service)),
            },
            ..DaemonSetSpec::default()
        }),
        ..DaemonSet::default()
    }
}

fn pod(service: Service) -> PodSpec {
    let control_planes = BTreeMap::from([(CONTROL_PLANE.to_owned(), String::new())]);
    PodSpec {
        containers: vec![container(service)],
        volumes: Some(mounts(service).into_iter().map(|mount| mount.volume).collect()),
        service_account_name: Some(service.name().into()),
        automount_service_account_token: Some(service == Service::Join),
        node_selector: (service != Service::Verification).then_some(control_planes),
        priority_class_name: Some("system-node-critical".into()),
        // Nodes must be able to join and be verified in any state.
        tolerations: Some(vec![Toleration {
            operator: Some("Exists".into()),
            ..Toleration::default()
        }]),
        security_context: Some(PodSecurityContext {
            run_as_user: Some(service.user().into()),
            run_as_group: Some(service.user().into()),
            run_as_non_root: Some(true),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(30),
        ..PodSpec::default()
    }
}

fn container(service: Service) -> Container {
    Container {
        name: service.name().into(),
        image: Some(service.image_name()),
        // The image is part of the measured root; an image of this name in a registry must never be used.
        image_pull_policy: Some("Never".into()),
        ports: Some(vec![
            container_port("health", HEALTH_PORT),
            container_port("metrics", METRICS_PORT),
        ]),
        volume_mounts: Some(mounts(service).into_iter().map(|mount| mount.mount).collect()),
        readiness_probe: Some(probe(5)),
        liveness_probe: Some(Probe {
            initial_delay_seconds: Some(60),
            failure_threshold: Some(6),
            ..probe(20)
        }),
        resources: Some(resources()),
        security_context: Some(least()),
        ..Container::default()
    }
}

/// No service opens a device: the attestation daemon does.
fn least() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".into()]),
            ..Capabilities::default()
        }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

fn resources() -> ResourceRequirements {
    let amounts = |cpu: &str, memory: &str| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.into())),
            ("memory".to_owned(), Quantity(memory.into())),
        ]))
    };
    ResourceRequirements {
        requests: amounts("10m", "16Mi"),
        limits: amounts("1", "64Mi"),
        ..Default::default()
    }
}

/// Limits are generous, because emulated machines are slow.
fn probe(period_seconds: i32) -> Probe {
    Probe {
        grpc: Some(GRPCAction {
            port: HEALTH_PORT,
            ..GRPCAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(10),
        ..Probe::default()
    }
}

fn container_port(name: &str, port: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.into()),
        container_port: port,
        ..ContainerPort::default()
    }
}

struct Mount {
    volume: Volume,
    mount: VolumeMount,
}

fn mounts(service: Service) -> Vec<Mount> {
    match service {
        Service::Key => vec![
            host_path("master-secret", "/run/state/constellation/master-secret.json", "File")
                .at("/run/constellation/master-secret.json", true),
            host_path("policy", "/run/state/constellation/key-policy", "Directory")
                .at("/run/constellation/key-policy", false),
            host_path("shared-files", "/run/state/constellation/shared-files", "Directory")
                .at("/run/constellation/shared-files", true),
            key_service_socket().at("/run/constellation/key-service", false),
            host_path("audit", "/var/log/constellation", "Directory").at("/var/log/constellation", false),
        ],
        Service::Join => vec![
            join_config().at("/var/config", true),
            host_path("policy", "/run/state/constellation/policy", "Directory").at("/run/constellation/policy", false),
            host_path("api-server", API_SERVER_CERTIFICATE, "File").at(API_SERVER_CERTIFICATE, true),
            attestation_socket(service).at(ATTESTATION_SOCKETS, true),
            key_service_socket().at("/run/constellation/key-service", true),
        ],
        Service::Verification => vec![attestation_socket(service).at(ATTESTATION_SOCKETS, true)],
    }
}

trait At {
    fn at(self, path: &str, read_only: bool) -> Mount;
}

impl At for Volume {
    fn at(self, path: &str, read_only: bool) -> Mount {
        let mount = VolumeMount {
            name: self.name.clone(),
            mount_path: path.into(),
            read_only: Some(read_only),
            ..VolumeMount::default()
        };
        Mount { volume: self, mount }
    }
}

fn join_config() -> Volume {
    let source = ConfigMapVolumeSource {
        name: JOIN_CONFIG.into(),
        ..ConfigMapVolumeSource::default()
    };
    Volume {
        name: "config".into(),
        config_map: Some(source),
        ..Volume::default()
    }
}

/// The folder with the attestation daemon's socket for this service.
fn attestation_socket(service: Service) -> Volume {
    let folder = format!("{ATTESTATION_SOCKETS}/{}", service.name());
    host_path("attestation", &folder, "Directory")
}

/// The folder with the key service's socket: not the socket itself, which is another one after each start.
fn key_service_socket() -> Volume {
    host_path("key-service", "/run/state/constellation/key-service", "Directory")
}
