use cluster_types::{Service, ServicePort};
use k8s_openapi::api::core::v1::{Service as ServiceObject, ServicePort as PortObject, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;

use super::pods::{daemon_set, labels};
use crate::Object;

/// DaemonSet, and a Service if it has ports.
pub(super) fn objects(service: Service) -> Vec<Object> {
    let mut objects = vec![Object::new(daemon_set(service))];
    if !service.ports().is_empty() {
        objects.push(Object::new(front(service)));
    }
    objects
}

/// The Service through which a program is reached.
fn front(service: Service) -> ServiceObject {
    let ports = service.ports();
    let on_nodes = ports.iter().any(|port| port.on_node.is_some());
    ServiceObject {
        metadata: ObjectMeta {
            name: Some(service.name().into()),
            namespace: Some(Service::NAMESPACE.into()),
            labels: Some(labels(service)),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some(if on_nodes { "NodePort" } else { "ClusterIP" }.into()),
            selector: Some(labels(service)),
            // A node answers for itself: a request to verify one node must not be sent to another.
            external_traffic_policy: on_nodes.then(|| "Local".into()),
            ports: Some(ports.iter().map(port).collect()),
            ..ServiceSpec::default()
        }),
        ..ServiceObject::default()
    }
}

fn port(port: &ServicePort) -> PortObject {
    PortObject {
        name: Some(port.name.into()),
        port: port.number.into(),
        target_port: Some(IntOrString::Int(port.number.into())),
        node_port: port.on_node.map(i32::from),
        protocol: Some("TCP".into()),
        ..PortObject::default()
    }
}
