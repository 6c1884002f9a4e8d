//! What we deploy into a cluster: rules of admission, our services, their rights and the pod network, as typed objects.
//!
//! There is no templating: functions build the objects, and two objects that must agree share a constant.

mod admission;
mod apply;
mod approval;
mod pod_network;
mod pods;
mod prune;
mod rights;
mod services;
mod volumes;

use cluster_objects::RECORDS_NAMESPACE;
use cluster_types::Service;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ObjectMeta;

pub use apply::{ApplyError, Object, is_final};
pub use pod_network::PodNetwork;
pub use prune::{PruneError, prune};

/// Everything that an image runs in its cluster, in the order in which it is applied. Rules of admission come first, so that they are
/// in force when the accounts exist that they restrict.
#[must_use]
pub fn objects(network: &PodNetwork) -> Vec<Object> {
    let mut objects = vec![namespace()];
    objects.extend(admission::admission());
    objects.extend(pod_network::pod_network(network));
    objects.extend(approval::disabled_auto_approval());
    objects.extend(Service::ALL.into_iter().flat_map(rights::rights));
    objects.extend(Service::ALL.into_iter().flat_map(services::objects));
    objects.into_iter().map(Object::of_an_image).collect()
}

/// The rights and the service account of one service.
#[must_use]
pub fn rights(service: Service) -> Vec<Object> {
    rights::rights(service)
}

/// The namespace in which [`cluster_objects::Cluster::claim`] keeps its records.
#[must_use]
pub fn namespace() -> Object {
    Object::new(Namespace {
        metadata: ObjectMeta {
            name: Some(RECORDS_NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    })
}
