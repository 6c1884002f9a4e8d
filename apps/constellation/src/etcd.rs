//! The members of the cluster's etcd, as an administrator sees and removes them: by etcdctl in the pod of one of them.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use cluster_types::NodeName;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, ListParams};
use kube::{Api, Client, ResourceExt};
use polling::{Failed, Schedule};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::advice::{Advise, given_up};
use crate::kubeconfig;
use crate::output::shown;

const NAMESPACE: &str = "kube-system";
const PODS: &str = "component=etcd,tier=control-plane";
/// In each pod, which kubeadm made.
const ETCDCTL: [&str; 5] = [
    "etcdctl",
    "--endpoints=https://127.0.0.1:2379",
    "--cacert=/etc/kubernetes/pki/etcd/ca.crt",
    "--cert=/etc/kubernetes/pki/etcd/healthcheck-client.crt",
    "--key=/etc/kubernetes/pki/etcd/healthcheck-client.key",
];
const PEER_PORT: u16 = 2380;
/// A node that hangs must not keep the others from it.
const POD_LIMIT: Duration = Duration::from_secs(60);
/// A list of a few members.
const MAX_OUTPUT_LEN: u64 = 64 << 10;
/// After a member is gone, the others may have to elect a leader.
const SCHEDULE: Schedule = Schedule::every(Duration::from_secs(5), Duration::from_secs(300));

#[derive(Deserialize)]
struct MemberList {
    members: Vec<Member>,
}

/// With the names of etcd's API, as etcdctl prints them.
#[derive(Deserialize)]
struct Member {
    #[serde(rename = "ID")]
    id: u64,
    #[serde(rename = "peerURLs", default)]
    peer_urls: Vec<String>,
}

/// Removes the member of a control plane, if there is one. etcd itself refuses what would leave too few members that run.
pub(crate) async fn remove_member(client: &Client, node: &NodeName, address: Ipv4Addr) -> Result<()> {
    let attempt = || async { try_to_remove(client, node, address).await.map_err(Failed::Retry) };
    SCHEDULE
        .poll(attempt, |_, _| {})
        .await
        .map_err(|error| given_up(error, &format!("{node} could not be removed from etcd")))
        .advise("bring the other control planes back with `constellation apply`, then run the same command again")
}

async fn try_to_remove(client: &Client, node: &NodeName, address: Ipv4Addr) -> Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let listed = pods.list(&ListParams::default().labels(PODS)).await;
    let listed = listed.map_err(|error| anyhow!(kubeconfig::in_words(&error)))?;
    let other = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(node.as_str());
    let mut failed = None;
    for pod in listed.iter().filter(other) {
        let name = pod.name_any();
        match timeout(POD_LIMIT, remove_by(&pods, &name, address)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => failed = Some(error),
            Err(_) => {
                failed = Some(anyhow!(
                    "etcdctl in {name} did not answer within {} s",
                    POD_LIMIT.as_secs()
                ))
            }
        }
    }
    Err(failed.unwrap_or_else(|| anyhow!("no other control plane runs etcd")))
}

async fn remove_by(pods: &Api<Pod>, pod: &str, address: Ipv4Addr) -> Result<()> {
    let list = etcdctl(pods, pod, &["member", "list", "--write-out=json"]).await?;
    match member_at(&list, address)? {
        Some(id) => etcdctl(pods, pod, &["member", "remove", &id]).await.map(drop),
        None => Ok(()),
    }
}

/// The id of the member with this address, as etcdctl takes it.
fn member_at(list: &str, address: Ipv4Addr) -> Result<Option<String>> {
    let MemberList { members } =
        serde_json::from_str(list).context("etcdctl printed something else than a list of members")?;
    let peer_url = format!("https://{address}:{PEER_PORT}");
    let found = members.iter().find(|member| member.peer_urls.contains(&peer_url));
    Ok(found.map(|member| format!("{:x}", member.id)))
}

async fn etcdctl(pods: &Api<Pod>, pod: &str, arguments: &[&str]) -> Result<String> {
    let command = ETCDCTL.iter().chain(arguments).copied();
    let started = pods.exec(pod, command, &AttachParams::default()).await;
    let mut process =
        started.map_err(|error| anyhow!("cannot run etcdctl in {pod}: {}", kubeconfig::in_words(&error)))?;
    let status = process.take_status();
    let (output, problem) = tokio::try_join!(read(process.stdout()), read(process.stderr()))?;
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    process
        .join()
        .await
        .with_context(|| format!("the connection to etcdctl in {pod} broke"))?;
    if status.and_then(|status| status.status).as_deref() == Some("Success") {
        return Ok(output);
    }
    bail!("etcdctl in {pod} failed: {}", shown(problem.trim()))
}

async fn read(stream: Option<impl AsyncReadExt + Unpin>) -> Result<String> {
    let mut text = String::new();
    if let Some(stream) = stream {
        stream.take(MAX_OUTPUT_LEN).read_to_string(&mut text).await?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As etcdctl 3.6 prints it.
    const LIST: &str = r#"{"header":{"cluster_id":14841639068965178418,"member_id":10276657743932975437,"raft_term":2},
        "members":[{"ID":10276657743932975437,"name":"control-plane-0","peerURLs":["https://10.42.1.100:2380"],
        "clientURLs":["https://10.42.1.100:2379"]},{"ID":255,"peerURLs":["https://10.42.1.101:2380"],"isLearner":true}]}"#;

    #[test]
    fn a_member_is_found_by_its_address() {
        let at = |host| member_at(LIST, Ipv4Addr::new(10, 42, 1, host)).unwrap();
        assert_eq!(at(100).as_deref(), Some("8e9e05c52164694d"));
        assert_eq!(at(101).as_deref(), Some("ff"));
        assert_eq!(at(10), None);
        assert!(member_at("Error: context deadline exceeded", Ipv4Addr::LOCALHOST).is_err());
    }
}
