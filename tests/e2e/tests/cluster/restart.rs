//! Nodes whose machines restart.

use anyhow::{Context, Result, ensure};
use cluster_types::DiskUuid;
use e2e::{Cluster, Image};
use serde_json::{Value, json};

use crate::workload::{CONTROL_PLANE, PRIVILEGED, WORKER, get, pod, pods_run};

/// What a node was before its machine restarted.
struct Before {
    node: &'static str,
    disk: DiskUuid,
    boot: String,
}

/// The control plane restarts as by its reset button, while the worker's power fails: nobody in the cluster has a key any more. `apply` recovers the
/// control plane, and the worker comes back by itself. Before that, root on the worker has changed one of the programs that the next boot would run.
pub(crate) fn what_restarts_at_once_comes_back(cluster: &Cluster, _: &Image) -> Result<()> {
    let before = [Before::now(cluster, CONTROL_PLANE)?, Before::now(cluster, WORKER)?];
    change_a_program(cluster)?;
    cluster.create(&note())?;

    cluster.command_machine(WORKER, "quit")?;
    cluster.command_machine(CONTROL_PLANE, "system_reset")?;
    cluster.wait_until("the worker's machine to stop", || {
        Ok(cluster.constellation(["status"])?.contains("stopped"))
    })?;
    cluster.wait_until("the control plane to wait for its key", || {
        Ok(cluster.console(CONTROL_PLANE)?.contains("the state disk is closed"))
    })?;
    cluster.constellation(["apply", "--yes"])?;

    for node in before {
        node.must_be_back(cluster)?;
    }
    pods_run(cluster, "--namespace=kube-system")?;
    ensure!(
        get(cluster, &["configmap", "note"])?["data"] == note()["data"],
        "the cluster has forgotten what was stored"
    );
    let console = cluster.console(WORKER)?;
    let (_, since_restart) = console
        .rsplit_once("the state disk is closed")
        .context("the worker did not wait for its key")?;
    ensure!(
        since_restart.contains("\"installed\":1,"),
        "the changed program was not replaced"
    );
    Ok(())
}

impl Before {
    fn now(cluster: &Cluster, node: &'static str) -> Result<Self> {
        Ok(Self {
            node,
            disk: cluster.state_disk(node)?,
            boot: boot_id(cluster, node)?,
        })
    }

    fn must_be_back(self, cluster: &Cluster) -> Result<()> {
        let Self { node, disk, boot } = self;
        let now = cluster.state_disk(node)?;
        ensure!(now == disk, "the state disk of {node} was {disk} and is {now}");
        ensure!(boot_id(cluster, node)? != boot, "{node} did not restart");
        cluster.say(&format!("{node} came back"));
        Ok(())
    }
}

/// A new one for each start of the kernel.
fn boot_id(cluster: &Cluster, node: &str) -> Result<String> {
    let object = get(cluster, &["node", node])?;
    let id = object["status"]["nodeInfo"]["bootID"].as_str();
    id.map(str::to_owned).with_context(|| format!("{node} has no boot id"))
}

/// Replaces a program of Kubernetes on the worker.
fn change_a_program(cluster: &Cluster) -> Result<()> {
    let mut pod = pod("changer", WORKER, &["write", "/programs/kubeadm", "changed"]);
    pod["metadata"]["namespace"] = json!(PRIVILEGED);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["volumes"] = json!([{ "name": "programs", "hostPath": { "path": "/run/state/bin" } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "programs", "mountPath": "/programs" }]);
    pod["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    cluster.create(&pod)?;
    let ended = [
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "--timeout=300s",
        "pod/changer",
    ];
    cluster.kubectl([&["--namespace", PRIVILEGED][..], &ended].concat())?;
    Ok(())
}

fn note() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "note" },
        "data": { "text": "written before the restart" },
    })
}
