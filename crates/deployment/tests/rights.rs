//! What each service may do, as a real API server sees it. A broader right shows up here as a difference.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::collections::BTreeSet;

use cluster_types::Service;
use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use test_cluster::TestCluster;

/// `verb group/resource` in one namespace, without what every authenticated user may do.
async fn rights(client: &Client, everyone: &Client, namespace: &str) -> BTreeSet<String> {
    let all = list(client, namespace).await;
    let common = list(everyone, namespace).await;
    all.difference(&common).cloned().collect()
}

async fn list(client: &Client, namespace: &str) -> BTreeSet<String> {
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec {
            namespace: Some(namespace.into()),
        },
        ..SelfSubjectRulesReview::default()
    };
    let api: Api<SelfSubjectRulesReview> = Api::all(client.clone());
    let status = api
        .create(&PostParams::default(), &review)
        .await
        .unwrap()
        .status
        .unwrap();
    assert!(!status.incomplete);
    let mut rights = BTreeSet::new();
    for rule in status.resource_rules {
        for verb in &rule.verbs {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    rights.insert(format!("{verb} {group}/{resource}"));
                }
            }
        }
    }
    rights
}

#[tokio::test]
async fn services_may_do_only_what_is_listed_here() {
    let cluster = TestCluster::start().await.unwrap();
    let admin = cluster.admin().unwrap();
    deployment::namespace().apply(&admin).await.unwrap();
    for object in Service::ALL.into_iter().flat_map(deployment::rights) {
        object.apply(&admin).await.unwrap();
    }
    cluster
        .wait_until_allowed("join-service", "get", "", "configmaps")
        .await
        .unwrap();
    let everyone = cluster.service_account("nobody").await.unwrap();

    let mut found = Vec::new();
    for service in Service::ALL {
        let client = cluster.service_account(service.name()).await.unwrap();
        for namespace in ["kube-system", "constellation-nodes", "default"] {
            for right in rights(&client, &everyone, namespace).await {
                found.push(format!("{} in {namespace}: {right}", service.name()));
            }
        }
    }
    assert_eq!(
        found,
        [
            "join-service in kube-system: approve certificates.k8s.io/signers",
            "join-service in kube-system: create /secrets",
            "join-service in kube-system: get /configmaps",
            "join-service in kube-system: list certificates.k8s.io/certificatesigningrequests",
            "join-service in kube-system: patch certificates.k8s.io/certificatesigningrequests/approval",
            "join-service in kube-system: watch certificates.k8s.io/certificatesigningrequests",
            "join-service in constellation-nodes: approve certificates.k8s.io/signers",
            "join-service in constellation-nodes: create /configmaps",
            "join-service in constellation-nodes: get /configmaps",
            "join-service in constellation-nodes: list certificates.k8s.io/certificatesigningrequests",
            "join-service in constellation-nodes: patch certificates.k8s.io/certificatesigningrequests/approval",
            "join-service in constellation-nodes: update /configmaps",
            "join-service in constellation-nodes: watch certificates.k8s.io/certificatesigningrequests",
            "join-service in default: approve certificates.k8s.io/signers",
            "join-service in default: list certificates.k8s.io/certificatesigningrequests",
            "join-service in default: patch certificates.k8s.io/certificatesigningrequests/approval",
            "join-service in default: watch certificates.k8s.io/certificatesigningrequests",
        ]
    );
}
