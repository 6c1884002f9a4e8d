//! A cluster of three control planes grows, loses machines and comes back. Too long for every change: `make life` runs it.
//!
//! The checks run in their order, and each needs the ones before.

use anyhow::{Result, ensure};
use e2e::{Cluster, Image};
use serde_json::{Value, json};

const CONTROL_PLANES: [&str; 3] = ["control-plane-0", "control-plane-1", "control-plane-2"];

type Check = fn(&Cluster) -> Result<()>;

#[test]
fn a_cluster_of_three_control_planes_lives() -> Result<()> {
    let cluster = Cluster::prepare(Image::built()?.disk())?;
    let result = live(&cluster);
    if let Err(error) = &result {
        cluster.say(&format!("FAILED: {error:#}"));
        cluster.report();
    }
    result?;
    cluster.constellation(["mini", "down", "--yes"]).map(drop)
}

fn live(cluster: &Cluster) -> Result<()> {
    let checks: [(&str, Check); 7] = [
        ("one control plane becomes three", one_becomes_three),
        ("without the first one, the cluster goes on", the_first_is_gone),
        ("one that restarts is let in by the others", one_restarts),
        ("one that is lost is replaced", a_lost_one_is_replaced),
        ("all of them restart at once", all_restart),
        ("three control planes become one", three_become_one),
        ("nothing that was stored is forgotten", nothing_is_forgotten),
    ];
    for (name, check) in checks {
        check(cluster)?;
        cluster.say(&format!("{name}: as expected"));
    }
    Ok(())
}

fn one_becomes_three(cluster: &Cluster) -> Result<()> {
    cluster.configure()?;
    cluster.change_config("initialCount: 1 # workers", "initialCount: 0 # workers")?;
    cluster.constellation(["apply", "--yes"])?;
    write(cluster, "one")?;
    cluster.change_config("initialCount: 1 # control", "initialCount: 3 # control")?;
    cluster.constellation(["apply", "--yes"])?;
    write(cluster, "three")?;
    cluster.constellation(["verify"])?;
    all_run(cluster)
}

/// Nodes and the administrator reach the API server of another one, and nobody has changed an address.
fn the_first_is_gone(cluster: &Cluster) -> Result<()> {
    let node = CONTROL_PLANES[0];
    let before = boot_id(cluster, node)?;
    cluster.command_machine(node, "quit")?;
    cluster.wait_until("its machine to stop", || {
        Ok(cluster.constellation(["status"])?.contains("stopped"))
    })?;
    write(cluster, "without the first")?;
    cluster.constellation(["apply", "--yes"])?;
    ensure!(boot_id(cluster, node)? != before, "{node} did not restart");
    must_not_be_recovered(cluster, node)?;
    all_run(cluster)
}

/// By proof to its peers: nobody has to recover it.
fn one_restarts(cluster: &Cluster) -> Result<()> {
    let node = CONTROL_PLANES[2];
    let before = boot_id(cluster, node)?;
    cluster.command_machine(node, "system_reset")?;
    write(cluster, "two of three")?;
    cluster.wait_until("it to be ready once more", || {
        Ok(boot_id(cluster, node)? != before && is_ready(cluster, node)?)
    })?;
    must_not_be_recovered(cluster, node)?;
    all_run(cluster)
}

fn must_not_be_recovered(cluster: &Cluster, node: &str) -> Result<()> {
    let was_recovered = cluster.console(node)?.contains("recovery accepted");
    ensure!(!was_recovered, "the operator had to help {node}");
    Ok(())
}

/// The first one of all, with its disk.
fn a_lost_one_is_replaced(cluster: &Cluster) -> Result<()> {
    let node = CONTROL_PLANES[0];
    let before = cluster.state_disk(node)?;
    cluster.command_machine(node, "quit")?;
    cluster.constellation(["node", "remove", node, "--lost", "--yes"])?;
    write(cluster, "two are left")?;
    cluster.constellation(["apply", "--yes"])?;
    ensure!(cluster.state_disk(node)? != before, "{node} has its old disk");
    cluster.constellation(["verify"])?;
    all_run(cluster)
}

fn three_become_one(cluster: &Cluster) -> Result<()> {
    cluster.change_config("initialCount: 3 # control", "initialCount: 1 # control")?;
    cluster.constellation(["apply", "--yes"])?;
    let nodes = cluster.kubectl(["get", "nodes", "--output=name"])?;
    ensure!(nodes.trim() == "node/control-plane-0", "nodes are {nodes:?}");
    write(cluster, "one again")
}

fn all_restart(cluster: &Cluster) -> Result<()> {
    let before = CONTROL_PLANES.map(|node| boot_id(cluster, node));
    for node in CONTROL_PLANES {
        cluster.command_machine(node, "quit")?;
    }
    cluster.wait_until("the machines to stop", || {
        Ok(cluster.constellation(["status"])?.matches("stopped").count() == CONTROL_PLANES.len())
    })?;
    cluster.constellation(["apply", "--yes"])?;
    for (node, before) in CONTROL_PLANES.iter().zip(before) {
        ensure!(boot_id(cluster, node)? != before?, "{node} did not restart");
    }
    all_run(cluster)
}

fn nothing_is_forgotten(cluster: &Cluster) -> Result<()> {
    for name in [
        "one",
        "three",
        "without the first",
        "two of three",
        "two are left",
        "one again",
    ] {
        cluster.kubectl(["get", "configmap", &name.replace(' ', "-")])?;
    }
    Ok(())
}

fn write(cluster: &Cluster, name: &str) -> Result<()> {
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name.replace(' ', "-") } });
    cluster.wait_until("the API server to take an object", || {
        Ok(cluster.create(&object).is_ok())
    })
}

fn all_run(cluster: &Cluster) -> Result<()> {
    let pods = cluster.kubectl([
        "get",
        "pods",
        "--namespace=kube-system",
        "--selector=component=etcd",
        "--output=name",
    ])?;
    ensure!(pods.lines().count() == CONTROL_PLANES.len(), "etcd runs as {pods:?}");
    for node in CONTROL_PLANES {
        cluster.wait_until("every control plane to be ready", || is_ready(cluster, node))?;
    }
    Ok(())
}

fn node(cluster: &Cluster, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl([
        "get",
        "node",
        name,
        "--output=json",
    ])?)?)
}

fn boot_id(cluster: &Cluster, name: &str) -> Result<String> {
    Ok(node(cluster, name)?["status"]["nodeInfo"]["bootID"].to_string())
}

fn is_ready(cluster: &Cluster, name: &str) -> Result<bool> {
    let node = node(cluster, name)?;
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    Ok(conditions.iter().any(ready))
}
