//! What the pods that we deploy may do to their node, as a real API server sees it. A broader privilege shows up here as a difference.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, Volume};
use kube::Api;
use kube::api::ListParams;
use test_cluster::TestCluster;

use self::support::network;

#[tokio::test]
async fn pods_have_only_the_privileges_that_are_listed_here() {
    let cluster = TestCluster::start().await.unwrap();
    let admin = cluster.admin().unwrap();
    for object in deployment::objects(&network()) {
        object.apply(&admin).await.unwrap();
    }
    let daemon_sets: Api<DaemonSet> = Api::all(admin);
    let listed = daemon_sets.list(&ListParams::default()).await.unwrap();
    let privileges: Vec<_> = listed.items.iter().flat_map(privileges_of).collect();
    assert_eq!(
        privileges,
        [
            "flannel: user of the image, group of the image, seccomp RuntimeDefault, network of the host, token of its account",
            "flannel: container flannel: capabilities [\"NET_ADMIN\", \"NET_RAW\"], read-only root",
            "flannel: host /run/flannel",
            "flannel: host /run/xtables.lock",
            "join-service: user 61001, group 61001, seccomp RuntimeDefault, token of its account",
            "join-service: container join-service: no capabilities, read-only root",
            "join-service: host /etc/kubernetes/pki/apiserver.crt, read-only",
            "join-service: host /run/constellation/attestation/join-service, read-only",
            "join-service: host /run/state/constellation/key-service, read-only",
            "join-service: host /run/state/constellation/policy",
            "key-service: user 61000, group 61000, seccomp RuntimeDefault",
            "key-service: container key-service: no capabilities, read-only root",
            "key-service: host /run/state/constellation/key-policy",
            "key-service: host /run/state/constellation/key-service",
            "key-service: host /run/state/constellation/master-secret.json, read-only",
            "key-service: host /run/state/constellation/shared-files, read-only",
            "key-service: host /var/log/constellation",
            "verification-service: user 61002, group 61002, seccomp RuntimeDefault",
            "verification-service: container verification-service: no capabilities, read-only root",
            "verification-service: host /run/constellation/attestation/verification-service, read-only",
        ]
    );
}

fn privileges_of(daemon_set: &DaemonSet) -> Vec<String> {
    let name = daemon_set.metadata.name.as_deref().unwrap();
    let pod = daemon_set.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    let containers = pod.init_containers.iter().flatten().chain(&pod.containers);
    let mut host: Vec<_> = pod
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| host_path(volume, pod))
        .collect();
    host.sort();
    let lines = [pod_privileges(pod)]
        .into_iter()
        .chain(containers.map(container_privileges))
        .chain(host);
    lines.map(|line| format!("{name}: {line}")).collect()
}

fn pod_privileges(pod: &PodSpec) -> String {
    let security = pod.security_context.clone().unwrap_or_default();
    let number = |number: Option<i64>| number.map_or("of the image".to_owned(), |number| number.to_string());
    let mut parts = vec![
        format!("user {}", number(security.run_as_user)),
        format!("group {}", number(security.run_as_group)),
        format!(
            "seccomp {}",
            security.seccomp_profile.map_or("none".into(), |profile| profile.type_)
        ),
    ];
    if let Some(groups) = security.supplemental_groups {
        parts.push(format!("groups {groups:?}"));
    }
    for (shared, what) in [
        (pod.host_network, "network of the host"),
        (pod.host_pid, "processes of the host"),
        (pod.host_ipc, "IPC of the host"),
        (
            Some(pod.automount_service_account_token != Some(false)),
            "token of its account",
        ),
    ] {
        if shared == Some(true) {
            parts.push(what.to_owned());
        }
    }
    parts.join(", ")
}

fn container_privileges(container: &Container) -> String {
    let security = container.security_context.clone().unwrap_or_default();
    let capabilities = security.capabilities.unwrap_or_default();
    let dropped = capabilities.drop.is_some_and(|dropped| dropped == ["ALL"]);
    let added = capabilities.add.unwrap_or_default();
    let mut parts = vec![match (dropped, added.is_empty()) {
        (true, true) => "no capabilities".to_owned(),
        (true, false) => format!("capabilities {added:?}"),
        (false, _) => format!("capabilities of the runtime and {added:?}"),
    }];
    for (has, what) in [
        (security.privileged == Some(true), "privileged"),
        (
            security.privileged != Some(true) && security.allow_privilege_escalation != Some(false),
            "may gain privileges",
        ),
        (security.read_only_root_filesystem == Some(true), "read-only root"),
        (security.run_as_user.is_some(), "another user"),
    ] {
        if has {
            parts.push(what.to_owned());
        }
    }
    format!("container {}: {}", container.name, parts.join(", "))
}

fn host_path(volume: &Volume, pod: &PodSpec) -> Option<String> {
    let path = &volume.host_path.as_ref()?.path;
    let containers = pod.init_containers.iter().flatten().chain(&pod.containers);
    let mut mounts = containers
        .flat_map(|container| container.volume_mounts.iter().flatten())
        .filter(|mount| mount.name == volume.name);
    let read_only = mounts.all(|mount| mount.read_only == Some(true));
    Some(format!("host {path}{}", if read_only { ", read-only" } else { "" }))
}
