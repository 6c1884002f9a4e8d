//! How workers come and go, and who has their names.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::sync::{Arc, Mutex};

use cluster_config::Workspace;
use digest::Digest;
use infrastructure::Provider;
use serde_json::json;
use support::api_server::{api_server, made};
use support::{Host, stderr, stdout};

/// A cluster without pods whose API server does all it is told, and remembers it.
struct Cluster {
    host: Host,
    told: Arc<Mutex<Vec<String>>>,
}

impl Cluster {
    fn made() -> Self {
        let told = Arc::<Mutex<Vec<String>>>::default();
        let tell = told.clone();
        let host = made(api_server("200 OK", move |request| {
            let request = request.trim_end_matches(" HTTP/1.1\r\n");
            tell.lock().unwrap().push(request.to_owned());
            answer(request)
        }));
        Self { host, told }
    }

    /// What it was told to change of the worker, without query.
    fn told_of(&self, worker: &str) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let of_worker = told
            .iter()
            .filter(|request| request.contains(worker) && !request.starts_with("GET"));
        of_worker
            .map(|request| request.split('?').next().unwrap().to_owned())
            .collect()
    }

    fn workspace(&self) -> Workspace {
        Workspace::open(&self.host.workspace()).unwrap()
    }

    fn machines(&self) -> Vec<String> {
        let machines = self.host.machines().machines().unwrap();
        machines.iter().map(|machine| machine.name.to_string()).collect()
    }

    /// As if these nodes had been verified.
    fn affirm(&self, nodes: &[&str]) {
        let mut state = self.workspace().state().unwrap().unwrap();
        for node in nodes {
            state.identities.insert(node.parse().unwrap(), Digest::of(b"machine"));
        }
        self.workspace().save_state(&state).unwrap();
    }

    fn affirmed(&self) -> Vec<String> {
        let state = self.workspace().state().unwrap().unwrap();
        state.identities.keys().map(ToString::to_string).collect()
    }
}

fn answer(request: &str) -> String {
    let (kind, version) = match request {
        _ if request.contains("/pods") => ("PodList", "v1"),
        _ if request.contains("/leases") => ("LeaseList", "coordination.k8s.io/v1"),
        _ if request.contains("/nodes/") => ("Node", "v1"),
        _ if request.contains("/nodes") => ("NodeList", "v1"),
        _ if request.contains("/configmaps/") => ("ConfigMap", "v1"),
        _ => ("ConfigMapList", "v1"),
    };
    let data = json!({ "attestedIdentity": Digest::of(b"machine").to_string() });
    json!({ "kind": kind, "apiVersion": version, "metadata": { "name": "x" }, "items": [], "data": data, "spec": {} })
        .to_string()
}

const LEFT: [&str; 3] = [
    "PATCH /api/v1/nodes/WORKER",
    "DELETE /api/v1/nodes/WORKER",
    "DELETE /api/v1/namespaces/constellation-nodes/configmaps/node-WORKER",
];

fn left(worker: &str) -> Vec<String> {
    LEFT.iter().map(|request| request.replace("WORKER", worker)).collect()
}

#[test]
fn a_worker_that_is_removed_leaves_nothing_behind() {
    let cluster = Cluster::made();
    cluster.affirm(&["control-plane-0", "worker-0"]);
    let refused = cluster.host.run(&["node", "remove", "worker-0"]);
    assert!(stderr(&refused).contains("pass --yes"), "{}", stderr(&refused));
    assert_eq!(cluster.machines(), ["control-plane-0", "worker-0"]);

    let removed = cluster.host.run(&["node", "remove", "worker-0", "--yes"]);
    assert!(removed.status.success(), "{}", stderr(&removed));
    assert!(stdout(&removed).contains("its name is free"), "{}", stderr(&removed));
    assert_eq!(cluster.told_of("worker-0"), left("worker-0"));
    assert_eq!(cluster.machines(), ["control-plane-0"]);
    assert_eq!(cluster.affirmed(), ["control-plane-0"]);

    let again = stderr(&cluster.host.run(&["node", "remove", "worker-0", "--yes"]));
    assert!(
        again.contains("there is no machine, Node or record of worker-0"),
        "{again}"
    );
}

/// The machine is gone, and the API server did not answer any more.
#[test]
fn an_interrupted_removal_is_finished_by_the_next_apply() {
    for workers in ["0", "1"] {
        let cluster = Cluster::made();
        cluster.affirm(&["control-plane-0", "worker-0"]);
        cluster.host.machines().remove(&"worker-0".parse().unwrap()).unwrap();
        let wanted = format!("initialCount: {workers} # workers");
        if workers != "1" {
            cluster.host.change_config("initialCount: 1 # workers", &wanted);
        }
        cluster
            .host
            .until(&["apply", "--yes"], "publishing the policy\n")
            .kill();
        assert_eq!(cluster.told_of("worker-0"), left("worker-0")[1..]);
        assert_eq!(cluster.affirmed(), ["control-plane-0"]);
        let made = cluster.machines().contains(&"worker-0".to_owned());
        assert_eq!(made, workers == "1");
    }
}

#[test]
fn a_lost_worker_is_not_waited_for() {
    let cluster = Cluster::made();
    assert!(
        cluster
            .host
            .run(&["node", "remove", "worker-0", "--lost", "--yes"])
            .status
            .success()
    );
    assert_eq!(cluster.told_of("worker-0"), left("worker-0")[1..]);
    assert_eq!(cluster.machines(), ["control-plane-0"]);
}

#[test]
fn the_only_control_plane_stays() {
    let cluster = Cluster::made();
    let refused = cluster.host.run(&["node", "remove", "control-plane-0", "--yes"]);
    let error = stderr(&refused);
    assert!(
        error.contains("only control plane") && error.contains("constellation terminate"),
        "{error}"
    );
    assert_eq!(cluster.machines(), ["control-plane-0", "worker-0"]);
    assert!(cluster.told_of("control-plane-0").is_empty());
}

#[test]
fn workers_come_and_go_and_the_cluster_stays_what_it_is() {
    let cluster = Cluster::made();
    let host = &cluster.host;
    host.change_config("initialCount: 1 # workers", "initialCount: 2 # workers");
    host.until(&["apply", "--yes"], "publishing the policy\n").kill();
    assert_eq!(host.machines().starts("worker-1"), 1);
    cluster.affirm(&["control-plane-0", "worker-1"]);
    host.change_config("initialCount: 2 # workers", "initialCount: 0 # workers");
    host.until(&["apply", "--yes"], "publishing the policy\n").kill();
    assert_eq!(cluster.affirmed(), ["control-plane-0"]);
    assert_eq!(cluster.machines(), ["control-plane-0"]);
    for worker in ["worker-0", "worker-1"] {
        assert_eq!(cluster.told_of(worker), left(worker));
    }
    assert_eq!(host.machines().starts("control-plane-0"), 1);
}

#[test]
fn each_name_is_listed_with_its_machine() {
    let cluster = Cluster::made();
    let listed = cluster.host.run(&["node", "list"]);
    assert!(listed.status.success(), "{}", stderr(&listed));
    let lines: Vec<_> = stdout(&listed).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[1].starts_with("control-plane-0 ") && lines[1].ends_with("nobody"),
        "{lines:?}"
    );
}
