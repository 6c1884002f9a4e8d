use std::collections::BTreeMap;

use cluster_objects::JOIN_CONFIG;
use cluster_types::Service;
use cluster_types::key_service::AUDIENCE;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, GRPCAction, PodSecurityContext, PodSpec,
    PodTemplateSpec, Probe, ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecurityContext,
    ServiceAccountTokenProjection, Toleration, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ObjectMeta;

use crate::volumes::host_path;

/// The user of pods that need neither a device nor a file of root.
const UNPRIVILEGED: i64 = 65532;
const HEALTH_PORT: i32 = 8090;
const METRICS_PORT: i32 = 8091;
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
        automount_service_account_token: Some(service != Service::Verification),
        node_selector: (service != Service::Verification).then_some(control_planes),
        priority_class_name: Some("system-node-critical".into()),
        // Nodes must be able to join and be verified in any state.
        tolerations: Some(vec![Toleration {
            operator: Some("Exists".into()),
            ..Toleration::default()
        }]),
        security_context: Some(PodSecurityContext {
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
        security_context: Some(security(service)),
        ..Container::default()
    }
}

/// Only root can open the TPM, and the kernel allows devices only in privileged containers. Only root can read the cluster's
/// CA key. The key service needs neither.
fn security(service: Service) -> SecurityContext {
    let least = SecurityContext {
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    };
    match service {
        Service::Key => SecurityContext {
            run_as_user: Some(UNPRIVILEGED),
            run_as_group: Some(UNPRIVILEGED),
            run_as_non_root: Some(true),
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                ..Capabilities::default()
            }),
            ..least
        },
        Service::Join | Service::Verification => SecurityContext {
            privileged: Some(true),
            ..least
        },
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
            host_path("audit", "/var/log/constellation", "Directory").at("/var/log/constellation", false),
        ],
        Service::Join => vec![
            join_config().at("/var/config", true),
            host_path("policy", "/run/state/constellation/policy", "Directory").at("/run/constellation/policy", false),
            host_path("pki", "/etc/kubernetes/pki", "Directory").at("/etc/kubernetes/pki", true),
            host_path("tpm", "/dev/tpmrm0", "CharDevice").at("/dev/tpmrm0", false),
            key_service_token().at("/var/run/secrets/key-service", true),
        ],
        Service::Verification => vec![host_path("tpm", "/dev/tpmrm0", "CharDevice").at("/dev/tpmrm0", false)],
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

/// A token that is valid only for the key service.
fn key_service_token() -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(AUDIENCE.into()),
        expiration_seconds: Some(600),
        path: "token".into(),
    };
    let projection = VolumeProjection {
        service_account_token: Some(token),
        ..VolumeProjection::default()
    };
    let source = ProjectedVolumeSource {
        sources: Some(vec![projection]),
        ..ProjectedVolumeSource::default()
    };
    Volume {
        name: "key-service-token".into(),
        projected: Some(source),
        ..Volume::default()
    }
}
