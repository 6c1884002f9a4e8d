//! Deploying into a real API server, more than once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::collections::BTreeMap;

use cluster_objects::RECORDS_NAMESPACE;
use cluster_types::Service;
use deployment::{Object, prune};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{ClusterRole, Role};
use kube::api::{DynamicObject, ListParams, ObjectMeta};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Api, Client};
use test_cluster::TestCluster;

use self::support::network;

const DEPLOYED: &str = "constellation/deployed";

async fn deploy(client: &Client) -> Vec<String> {
    let objects = deployment::objects(&network());
    for object in &objects {
        let applied = object.apply(client).await;
        applied.unwrap_or_else(|error| panic!("{}: {error:?}", object.title()));
    }
    prune(client, &objects).await.unwrap()
}

/// The versions of some objects, by their names.
async fn versions(client: &Client) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    for (group, version, kind) in [
        ("apps", "v1", "DaemonSet"),
        ("", "v1", "ConfigMap"),
        ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
        ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy"),
    ] {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        for object in api.list(&ListParams::default().labels(DEPLOYED)).await.unwrap() {
            let ObjectMeta {
                name, resource_version, ..
            } = object.metadata;
            versions.insert(format!("{kind} {}", name.unwrap()), resource_version.unwrap());
        }
    }
    versions
}

#[tokio::test]
async fn deploying_again_changes_nothing() {
    let cluster = TestCluster::start().await.unwrap();
    let admin = cluster.admin().unwrap();
    deploy(&admin).await;
    let before = versions(&admin).await;
    assert!(before.contains_key("DaemonSet join-service") && before.contains_key("ConfigMap flannel-config"));
    assert!(deploy(&admin).await.is_empty());
    assert_eq!(versions(&admin).await, before);
}

fn labels(name: &str) -> Option<BTreeMap<String, String>> {
    Some(BTreeMap::from([(name.to_owned(), "true".to_owned())]))
}

fn config_map(name: &str, namespace: &str, label: &str) -> Object {
    Object::new(ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            labels: labels(label),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    })
}

#[tokio::test]
async fn what_an_image_deployed_once_goes_and_what_others_made_stays() {
    let cluster = TestCluster::start().await.unwrap();
    let admin = cluster.admin().unwrap();
    deploy(&admin).await;
    let role = ClusterRole {
        metadata: ObjectMeta {
            name: Some("constellation:once".into()),
            labels: labels(DEPLOYED),
            ..ObjectMeta::default()
        },
        ..ClusterRole::default()
    };
    let role_of_records = Role {
        metadata: ObjectMeta {
            name: Some("once".into()),
            namespace: Some(RECORDS_NAMESPACE.into()),
            labels: labels(DEPLOYED),
            ..ObjectMeta::default()
        },
        ..Role::default()
    };
    for object in [
        Object::new(role),
        Object::new(role_of_records),
        config_map("once", Service::NAMESPACE, DEPLOYED),
        // Neither of them is an image's.
        config_map("unlabelled", Service::NAMESPACE, "other"),
        config_map("elsewhere", "default", DEPLOYED),
    ] {
        object.apply(&admin).await.unwrap();
    }
    assert_eq!(
        deploy(&admin).await,
        ["ConfigMap once", "Role once", "ClusterRole constellation:once"]
    );
    for (name, namespace, stays) in [
        ("once", Service::NAMESPACE, false),
        ("unlabelled", Service::NAMESPACE, true),
        ("elsewhere", "default", true),
    ] {
        let maps: Api<ConfigMap> = Api::namespaced(admin.clone(), namespace);
        assert_eq!(maps.get_opt(name).await.unwrap().is_some(), stays, "{name}");
    }
    assert!(deploy(&admin).await.is_empty());
}
