//! The nodes as Kubernetes sees them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use cluster_config::Boot;
use cluster_types::NodeName;
use infrastructure::Machine;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};
use polling::{Failed, Schedule};
use terminal::Step;

use crate::advice::{advise, given_up};
use crate::freshness::{Freshness, Seen};
use crate::run::Run;
use crate::{kubeconfig, machines};

/// Time limit until all nodes are ready once the services are applied. Under software emulation, joining takes a minute or two.
const LIMIT: Duration = Duration::from_secs(1800);
const INTERVAL: Duration = Duration::from_secs(2);

/// Where kubelets renew their leases.
const LEASES: &str = "kube-node-lease";

/// Waits until every node of the configuration is ready, and records which ones are part of the cluster.
pub(crate) async fn wait(run: &mut Run<'_>, step: &Step<'_>) -> Result<()> {
    let client = kubeconfig::client(run.workspace).await?;
    // Borrowed between two awaits only.
    let run = RefCell::new(run);
    let freshness = RefCell::new(Freshness::new());
    let first_missing = Cell::new(None::<NodeName>);
    let attempt = || async {
        let listed = list(&client).await;
        let mut run = run.borrow_mut();
        let machines = run.provider.machines().map_err(|error| Failed::Stop(error.into()))?;
        let none = BTreeMap::new();
        let seen = listed.as_ref().unwrap_or(&none);
        let mut freshness = freshness.borrow_mut();
        if listed.is_ok() {
            freshness.look(seen);
        }
        let missing = missing(&run, seen, &machines, &freshness);
        remember(&mut run, seen, &machines, &missing).map_err(Failed::Stop)?;
        if missing.is_empty() {
            return Ok(());
        }
        first_missing.set(missing.keys().next().cloned());
        let shown: Vec<_> = missing.iter().map(|(name, why)| format!("{name} ({why})")).collect();
        let what = format!("not ready yet: {}", shown.join(", "));
        step.detail(&what);
        let error = match listed {
            Ok(_) => anyhow!(what),
            // Why nothing is known of the nodes, should that stay so.
            Err(error) => Error::new(error).context(what),
        };
        Err(machines::retry(&*run.provider, error))
    };
    let waited = Schedule::every(INTERVAL, LIMIT).poll(attempt, |_, _| {}).await;
    waited.map_err(|error| {
        let console = first_missing.take().map(|name| run.borrow().provider.console(&name));
        advise(
            given_up(error, "not all nodes became ready"),
            console.unwrap_or_default(),
            "run the same command again to go on waiting",
        )
    })
}

/// All nodes by name.
pub(crate) async fn list(client: &Client) -> kube::Result<BTreeMap<NodeName, Seen>> {
    let all = ListParams::default();
    let nodes = Api::<Node>::all(client.clone()).list(&all).await?;
    let leases = Api::<Lease>::namespaced(client.clone(), LEASES).list(&all).await?;
    let mut renewed: BTreeMap<String, String> = leases.items.into_iter().filter_map(renewal).collect();
    let named = nodes.items.into_iter().filter_map(|node| {
        let name = node.metadata.name.clone()?;
        Some((name.parse().ok()?, seen(&node, renewed.remove(&name))))
    });
    Ok(named.collect())
}

fn renewal(lease: Lease) -> Option<(String, String)> {
    let renewed = lease.spec?.renew_time?;
    Some((lease.metadata.name?, renewed.0.to_string()))
}

fn seen(node: &Node, renewed: Option<String>) -> Seen {
    let status = node.status.as_ref();
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let info = status.and_then(|status| status.node_info.as_ref());
    Seen {
        ready: conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        version: info.map(|info| info.kubelet_version.clone()).unwrap_or_default(),
        boot_id: info.map(|info| info.boot_id.clone()).unwrap_or_default(),
        renewed,
    }
}

/// Which nodes are part of the cluster, and in which boot those that are not missing became ready.
fn remember(
    run: &mut Run<'_>,
    seen: &BTreeMap<NodeName, Seen>,
    machines: &[Machine],
    missing: &BTreeMap<NodeName, &str>,
) -> Result<()> {
    let before = (run.state.members.len(), run.state.boots.clone());
    run.state.members.extend(seen.keys().cloned());
    for (name, node) in seen.iter().filter(|(name, _)| !missing.contains_key(name)) {
        if let Some(start) = start_of(machines, name) {
            let boot = Boot {
                start: start.to_owned(),
                boot_id: node.boot_id.clone(),
            };
            run.state.boots.insert(name.clone(), boot);
        }
    }
    if before != (run.state.members.len(), run.state.boots.clone()) {
        run.workspace.save_state(&run.state)?;
    }
    Ok(())
}

/// The nodes that are wanted and not ready, with the reason.
fn missing(
    run: &Run<'_>,
    seen: &BTreeMap<NodeName, Seen>,
    machines: &[Machine],
    freshness: &Freshness,
) -> BTreeMap<NodeName, &'static str> {
    let why = |name: &NodeName| {
        let start = start_of(machines, name).unwrap_or_default();
        match seen.get(name) {
            None => Some("not part of the cluster"),
            Some(node) if !freshness.is_fresh(name, node, start, run.state.boots.get(name)) => {
                Some("not heard of since its machine was started")
            }
            Some(node) if !node.ready => Some("not ready"),
            Some(_) => None,
        }
    };
    let wanted = run.config.nodes().into_iter().map(|node| node.name);
    wanted.filter_map(|name| why(&name).map(|why| (name, why))).collect()
}

fn start_of<'a>(machines: &'a [Machine], name: &NodeName) -> Option<&'a str> {
    let machine = machines.iter().find(|machine| machine.name == *name);
    machine.map(|machine| machine.start.as_str())
}
