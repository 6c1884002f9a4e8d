use cluster_objects::RECORDS_NAMESPACE;
use cluster_types::Service;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service as ServiceObject, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::discovery::ApiResource;
use kube::{Api, Client, Error};

use crate::Object;
use crate::apply::{DEPLOYED, is_final, resource};

/// An object that this image does not have could not be looked for or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {what}")]
pub struct PruneError {
    action: &'static str,
    what: String,
    source: Box<Error>,
}

impl PruneError {
    /// Whether the API server understood the request and will never do it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(&*self.source, Error::Api(status) if is_final(status.code))
    }
}

/// Every kind of object that an image has deployed so far, and where. A namespace is not among them: it would take with it what others made in it.
fn kinds() -> [(ApiResource, Option<&'static str>); 12] {
    let (ours, records) = (Some(Service::NAMESPACE), Some(RECORDS_NAMESPACE));
    [
        // Who does something goes first, then what it may do, then what it must not.
        (resource::<DaemonSet>(), ours),
        (resource::<ServiceObject>(), ours),
        (resource::<ConfigMap>(), ours),
        (resource::<RoleBinding>(), ours),
        (resource::<RoleBinding>(), records),
        (resource::<Role>(), ours),
        (resource::<Role>(), records),
        (resource::<ClusterRoleBinding>(), None),
        (resource::<ClusterRole>(), None),
        (resource::<ServiceAccount>(), ours),
        (resource::<ValidatingAdmissionPolicyBinding>(), None),
        (resource::<ValidatingAdmissionPolicy>(), None),
    ]
}

/// Removes what another image deployed and `wanted` does not have, and gives the titles of what it removed. Repeating it is harmless.
///
/// # Errors
/// When the API server refuses it.
pub async fn prune(client: &Client, wanted: &[Object]) -> Result<Vec<String>, PruneError> {
    let mut removed = Vec::new();
    for (resource, namespace) in kinds() {
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let failed = |action, what: &str| {
            let what = what.to_owned();
            move |source| PruneError {
                action,
                what,
                source: Box::new(source),
            }
        };
        let deployed = ListParams::default().labels(DEPLOYED);
        let there = api.list(&deployed).await.map_err(failed("list", &resource.plural))?;
        let names = there.items.into_iter().filter_map(|object| object.metadata.name);
        let is_wanted = |name: &str| {
            let mut wanted = wanted.iter().filter(|object| object.resource == resource);
            wanted.any(|object| object.name() == name && object.namespace() == namespace)
        };
        for name in names.filter(|name| !is_wanted(name)) {
            let title = format!("{} {name}", resource.kind);
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => removed.push(title),
                Err(Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(failed("remove", &title)(error)),
            }
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cluster_types::{Cidr, NodeInterface};

    use super::*;
    use crate::PodNetwork;

    #[test]
    fn every_kind_is_pruned_in_each_of_its_namespaces() {
        let network = PodNetwork {
            pods: Cidr::PODS,
            node_interface: NodeInterface::Private,
            api_server: "10.42.1.100:6443".parse().unwrap(),
        };
        let kind_and_namespace =
            |object: &Object| (object.resource.kind.clone(), object.namespace().map(str::to_owned));
        let deployed = crate::objects(&network);
        let deployed: BTreeSet<_> = deployed.iter().map(kind_and_namespace).collect();
        let pruned = kinds().map(|(resource, namespace)| (resource.kind, namespace.map(str::to_owned)));
        let mut pruned = BTreeSet::from(pruned);
        pruned.insert(("Namespace".to_owned(), None));
        assert_eq!(deployed, pruned);
    }
}
