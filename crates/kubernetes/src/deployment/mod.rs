//! Everything the CLI applies to a new cluster, as typed objects.
//!
//! There is no templating: an object is built by a function, and two objects that must agree share a constant.

mod apply;
mod pods;
mod rights;
mod services;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::ObjectMeta;

pub use apply::{ApplyError, Object};

use crate::{JoinConfig, RECORDS_NAMESPACE};

/// The programs that run as pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Lets nodes in.
    Join,
    /// Hands out keys.
    Key,
    /// Proves what a node runs.
    Verification,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Key, Self::Join, Self::Verification];

    /// Name of its program, image, DaemonSet, Service and service account.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Join => "join-service",
            Self::Key => "key-service",
            Self::Verification => "verification-service",
        }
    }
}

/// Name of the container image of a service, as it is inside the node image.
///
/// The images are part of the measured root and never pulled, so the registry is no host.
#[must_use]
pub fn image_name(service: Service) -> String {
    format!(
        "localhost/constellation/{}:v{}",
        service.name(),
        env!("CARGO_PKG_VERSION")
    )
}

/// Rights and service account of one service.
#[must_use]
pub fn rights(service: Service) -> Vec<Object> {
    rights::rights(service)
}

/// Everything that our services need, in the order in which it is applied.
#[must_use]
pub fn objects(config: &JoinConfig) -> Vec<Object> {
    let mut objects = vec![namespace(), Object::new(config.to_config_map())];
    objects.extend(Service::ALL.into_iter().flat_map(rights::rights));
    objects.extend(Service::ALL.into_iter().flat_map(services::objects));
    objects
}

/// Where [`crate::Cluster::claim_disk`] and its like keep their records.
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
