//! Moves the pods of a node elsewhere before its machine goes.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, anyhow};
use cluster_types::NodeName;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{EvictParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, Error, ResourceExt};
use polling::{Failed, Schedule};
use serde_json::json;

use crate::advice::{Advise, given_up};
use crate::kubeconfig;
use crate::output::shown;

/// Time limit for all pods of a node. A pod may take its grace period to end, by default half a minute.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);
const INTERVAL: Duration = Duration::from_secs(2);
/// Pods that the kubelet makes from files. They go with it.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Pods that do not leave, and why.
type Waiting = BTreeMap<String, String>;
/// By their UIDs.
type Uids = BTreeSet<String>;

/// Evicts every pod that is not there for this node alone, and waits until they are gone. The scheduler places no new ones there; those that
/// somebody else places there are not waited for.
///
/// # Errors
/// When time is up. A PodDisruptionBudget that forbids an eviction is named; it is never overridden.
pub(crate) async fn drain(client: &Client, node: &NodeName, limit: Duration, detail: &dyn Fn(&str)) -> Result<()> {
    let first_seen = OnceCell::new();
    let attempt = || async {
        cordon(client, node).await.map_err(retry)?;
        let waiting = evict(client, node, &first_seen).await.map_err(retry)?;
        if waiting.is_empty() {
            return Ok(());
        }
        let listed: Vec<_> = waiting.iter().map(|(pod, why)| format!("{pod} ({why})")).collect();
        Err(Failed::Retry(anyhow!("still there: {}", listed.join(", "))))
    };
    let show = |error: &anyhow::Error, _| detail(&error.to_string());
    Schedule::every(INTERVAL, limit)
        .poll(attempt, show)
        .await
        .map_err(|error| given_up(error, &format!("the pods of {node} did not leave")))
        .advise(format!(
            "make room for these pods, or change the PodDisruptionBudget, then run the same command again; if {node} does not answer, run \
             `constellation node remove {node} --lost`; to keep it, run `kubectl uncordon {node}`"
        ))
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn retry(error: Error) -> Failed<anyhow::Error> {
    Failed::Retry(anyhow!(kubeconfig::in_words(&error)))
}

/// A Node that is gone needs none.
async fn cordon(client: &Client, node: &NodeName) -> kube::Result<()> {
    let unschedulable = Patch::Merge(json!({ "spec": { "unschedulable": true } }));
    let nodes = Api::<Node>::all(client.clone());
    found(
        nodes
            .patch(node.as_str(), &PatchParams::default(), &unschedulable)
            .await,
    )
}

/// Those that are still there of the pods that were seen first.
async fn evict(client: &Client, node: &NodeName, first_seen: &OnceCell<Uids>) -> kube::Result<Waiting> {
    let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = Api::<Pod>::all(client.clone()).list(&on_node).await?;
    let leaving = || pods.iter().filter(|pod| leaves(pod));
    let first_seen = first_seen.get_or_init(|| leaving().filter_map(ResourceExt::uid).collect());
    let mut waiting = Waiting::new();
    for pod in leaving().filter(|pod| pod.uid().is_some_and(|uid| first_seen.contains(&uid))) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let why = if pod.metadata.deletion_timestamp.is_some() {
            "ending".to_owned()
        } else {
            let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
            match pods.evict(&name, &EvictParams::default()).await {
                Err(Error::Api(status)) if status.code == 404 => continue,
                Err(Error::Api(status)) => refusal(&status),
                evicted => evicted.map(|_| "ending".to_owned())?,
            }
        };
        waiting.insert(format!("{namespace}/{name}"), why);
    }
    Ok(waiting)
}

/// What a budget says of itself is in the causes.
fn refusal(status: &kube::core::Status) -> String {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let mut causes = causes
        .map(|cause| cause.message.as_str())
        .filter(|message| !message.is_empty());
    shown(causes.next().unwrap_or(&status.message))
}

/// Not those that a DaemonSet or the kubelet would make again at once, nor those that have ended.
fn leaves(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let of_daemon_set = pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet");
    !of_daemon_set && !pod.annotations().contains_key(MIRROR) && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// What is not there is as it should be.
pub(crate) fn found<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(Error::Api(status)) if status.code == 404 => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ServiceAccount;
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use kube::api::{DeleteParams, PostParams};
    use serde::de::DeserializeOwned;
    use serde_json::Value;
    use test_cluster::TestCluster;

    use super::*;

    async fn create<K>(api: &Api<K>, object: Value)
    where
        K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
    {
        let object = serde_json::from_value(object).unwrap();
        api.create(&PostParams::default(), &object).await.unwrap();
    }

    /// A Node with a pod of somebody's application, and its kubelet.
    async fn node() -> (TestCluster, Client, NodeName, Api<Pod>) {
        let cluster = TestCluster::start().await.unwrap();
        let (admin, node) = (
            cluster.admin_without_retries().unwrap(),
            "worker-0".parse::<NodeName>().unwrap(),
        );
        create(
            &Api::<Node>::all(admin.clone()),
            json!({ "metadata": { "name": node } }),
        )
        .await;
        let accounts = Api::<ServiceAccount>::default_namespaced(admin.clone());
        create(&accounts, json!({ "metadata": { "name": "default" } })).await;
        let pods = Api::<Pod>::default_namespaced(admin.clone());
        create(&pods, pod("web", json!({ "labels": { "app": "web" } }))).await;
        // The API server asks no budget about a pod that does not run.
        let running = Patch::Merge(json!({ "status": { "phase": "Running" } }));
        pods.patch_status("web", &PatchParams::default(), &running)
            .await
            .unwrap();
        tokio::spawn(end_pods(pods.clone()));
        (cluster, admin, node, pods)
    }

    fn pod(name: &str, mut metadata: Value) -> Value {
        metadata["name"] = json!(name);
        let containers = json!([{ "name": "c", "image": "i" }]);
        json!({ "metadata": metadata, "spec": { "nodeName": "worker-0", "containers": containers } })
    }

    /// What a kubelet does with pods that are to end.
    async fn end_pods(pods: Api<Pod>) {
        loop {
            for pod in pods.list(&ListParams::default()).await.into_iter().flatten() {
                if pod.metadata.deletion_timestamp.is_some() {
                    let now = DeleteParams::default().grace_period(0);
                    let _ = pods.delete(&pod.name_any(), &now).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn names(pods: &Api<Pod>) -> Vec<String> {
        let listed = pods.list(&ListParams::default()).await.unwrap();
        listed.iter().map(ResourceExt::name_any).collect()
    }

    #[tokio::test]
    async fn pods_leave_except_those_that_are_there_for_the_node() {
        let (_cluster, admin, node, pods) = node().await;
        let owner =
            json!([{ "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true }]);
        create(&pods, pod("daemon", json!({ "ownerReferences": owner }))).await;
        create(&pods, pod("mirror", json!({ "annotations": { MIRROR: "file" } }))).await;
        create(&pods, pod("done", json!({}))).await;
        let done = Patch::Merge(json!({ "status": { "phase": "Succeeded" } }));
        pods.patch_status("done", &PatchParams::default(), &done).await.unwrap();
        drain(&admin, &node, LIMIT, &|_| {}).await.unwrap();
        assert_eq!(names(&pods).await, ["daemon", "done", "mirror"]);
        let cordoned = Api::<Node>::all(admin).get(node.as_str()).await.unwrap();
        assert_eq!(cordoned.spec.unwrap().unschedulable, Some(true));
    }

    #[tokio::test]
    async fn a_budget_that_forbids_it_is_named_and_not_overridden() {
        let (_cluster, admin, node, pods) = node().await;
        let budgets = Api::<PodDisruptionBudget>::default_namespaced(admin.clone());
        let selector = json!({ "matchLabels": { "app": "web" } });
        create(
            &budgets,
            json!({ "metadata": { "name": "keep-web" }, "spec": { "minAvailable": 1, "selector": selector } }),
        )
        .await;
        let refused = drain(&admin, &node, Duration::from_secs(3), &|_| {}).await.unwrap_err();
        let refused = crate::advice::render(&refused);
        for part in [
            "the pods of worker-0 did not leave within 3 s",
            "default/web",
            "keep-web",
            "kubectl uncordon worker-0",
        ] {
            assert!(refused.contains(part), "{refused}");
        }
        assert_eq!(names(&pods).await, ["web"]);
    }

    /// By its `nodeName`, past the scheduler.
    #[tokio::test]
    async fn a_pod_that_is_placed_there_meanwhile_is_not_waited_for() {
        let (_cluster, admin, node, pods) = node().await;
        let placing = tokio::spawn({
            let pods = pods.clone();
            async move {
                while names(&pods).await.contains(&"web".to_owned()) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                create(&pods, pod("again", json!({}))).await;
            }
        });
        drain(&admin, &node, LIMIT, &|_| {}).await.unwrap();
        placing.await.unwrap();
        assert_eq!(names(&pods).await, ["again"]);
    }

    #[tokio::test]
    async fn a_node_that_is_gone_has_nothing_to_leave() {
        let (_cluster, admin, _, _) = node().await;
        drain(&admin, &"worker-7".parse().unwrap(), LIMIT, &|_| {})
            .await
            .unwrap();
    }
}
