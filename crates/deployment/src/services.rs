use cluster_objects::NAMESPACE;
use cluster_types::Service;
use k8s_openapi::api::core::v1::{Service as ServiceObject, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;

use super::pods::{daemon_set, labels};
use crate::Object;

/// DaemonSet and Service.
pub(super) fn objects(service: Service) -> Vec<Object> {
    vec![Object::new(daemon_set(service)), Object::new(front(service))]
}

/// Where a service is reached. Ports are the predecessor's.
fn front(service: Service) -> ServiceObject {
    let (kind, ports) = match service {
        Service::Key => ("ClusterIP", vec![port("grpc", 9000, None)]),
        Service::Join => ("NodePort", vec![port("grpc", 9090, Some(30090))]),
        Service::Verification => (
            "NodePort",
            vec![port("grpc", 9090, Some(30081)), port("http", 8080, Some(30080))],
        ),
    };
    ServiceObject {
        metadata: ObjectMeta {
            name: Some(service.name().into()),
            namespace: Some(NAMESPACE.into()),
            labels: Some(labels(service)),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some(kind.into()),
            selector: Some(labels(service)),
            // A node answers for itself: what verifies one node must not be sent to another.
            external_traffic_policy: (kind == "NodePort").then(|| "Local".into()),
            ports: Some(ports),
            ..ServiceSpec::default()
        }),
        ..ServiceObject::default()
    }
}

fn port(name: &str, number: i32, node_port: Option<i32>) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port: number,
        target_port: Some(IntOrString::Int(number)),
        node_port,
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    }
}
