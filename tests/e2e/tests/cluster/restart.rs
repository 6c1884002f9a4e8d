//! Nodes whose machines restart.

use anyhow::{Context, Result, ensure};
use cluster_types::DiskUuid;
use e2e::{Cluster, Image};
use serde_json::{Value, json};

use crate::workload::{PRIVILEGED, WORKER, get, pod, pods_run};

/// First as by its reset button; then its host stops it, and the operator starts it again. Meanwhile root on the worker changes one of the programs
/// that the next boot would run.
pub(crate) fn a_worker_that_restarts_comes_back(cluster: &Cluster, _: &Image) -> Result<()> {
    let disk = cluster.state_disk(WORKER)?;
    let boot = boot_id(cluster)?;
    cluster.command_machine(WORKER, "system_reset")?;
    must_come_back(cluster, &boot, disk)?;

    cluster.create(&changer())?;
    let phase = [
        "-n",
        PRIVILEGED,
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "--timeout=300s",
        "pod/changer",
    ];
    cluster.kubectl(phase)?;
    let boot = boot_id(cluster)?;
    cluster.command_machine(WORKER, "quit")?;
    cluster.constellation(["apply", "--yes"])?;
    must_come_back(cluster, &boot, disk)?;
    let console = cluster.console(WORKER)?;
    let restored = console.rfind("\"installed\":1,");
    ensure!(
        restored > console.rfind("ticket received"),
        "the changed program was not replaced"
    );
    Ok(())
}

/// Replaces a program of Kubernetes.
fn changer() -> Value {
    let mut pod = pod("changer", WORKER, &["write", "/programs/kubeadm", "changed"]);
    pod["metadata"]["namespace"] = json!(PRIVILEGED);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["volumes"] = json!([{ "name": "programs", "hostPath": { "path": "/run/state/bin" } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "programs", "mountPath": "/programs" }]);
    pod["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    pod
}

fn must_come_back(cluster: &Cluster, boot: &str, disk: DiskUuid) -> Result<()> {
    cluster.wait_until("the worker to be ready once more", || {
        let now = boot_id(cluster)?;
        ensure!(now != boot, "its kubelet has not started yet");
        is_ready(cluster)
    })?;
    let now = cluster.state_disk(WORKER)?;
    ensure!(now == disk, "its state disk was {disk} and is {now}");
    pods_run(cluster, "--namespace=kube-system")?;
    cluster.constellation(["verify"])?;
    cluster.say("the worker came back");
    Ok(())
}

/// A new one for each start of the kernel.
fn boot_id(cluster: &Cluster) -> Result<String> {
    let node = get(cluster, &["node", WORKER])?;
    let id = node["status"]["nodeInfo"]["bootID"].as_str();
    id.map(str::to_owned).context("the node has no boot id")
}

fn is_ready(cluster: &Cluster) -> Result<bool> {
    let node = get(cluster, &["node", WORKER])?;
    let conditions = node["status"]["conditions"]
        .as_array()
        .context("the node has no conditions")?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    Ok(ready.is_some_and(|ready| ready["status"] == "True"))
}
