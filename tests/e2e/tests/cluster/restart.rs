//! Nodes whose machines restart.

use anyhow::{Context, Result, ensure};
use cluster_types::DiskUuid;
use e2e::{Cluster, Image};

use crate::workload::{WORKER, get, pods_run};

/// As by its reset button.
pub(crate) fn a_worker_that_restarts_comes_back(cluster: &Cluster, _: &Image) -> Result<()> {
    let disk = cluster.state_disk(WORKER)?;
    let boot = boot_id(cluster)?;
    cluster.command_machine(WORKER, "system_reset")?;
    must_come_back(cluster, &boot, disk)
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
