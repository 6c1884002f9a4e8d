//! The nodes as Kubernetes sees them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, anyhow};
use cluster_config::{Boot, ClusterState};
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

/// Time limit until all nodes are ready once the policy is published. Under software emulation, joining takes a minute or two.
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
        let wanted = run.config.nodes().into_iter().map(|node| node.name);
        let missing = missing(wanted, &run.state, seen, &machines, &freshness);
        if remember(&mut run.state, seen, &machines, &missing) {
            let saved = run.workspace.save_state(&run.state);
            saved.map_err(|error| Failed::Stop(error.into()))?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        first_missing.set(missing.keys().next().cloned());
        let error = match listed {
            Ok(_) => {
                let shown: Vec<_> = missing.iter().map(|(name, why)| format!("{name} ({why})")).collect();
                anyhow!("not ready yet: {}", shown.join(", "))
            }
            // Nothing is known of the nodes then.
            Err(error) => anyhow!(kubeconfig::in_words(&error)),
        };
        step.detail(&error.to_string());
        Err(machines::retry(&*run.provider, error))
    };
    let waited = Schedule::every(INTERVAL, LIMIT).poll(attempt, |_, _| {}).await;
    waited.map_err(|error| {
        let console = first_missing.take().map(|name| run.borrow().provider.console(&name));
        advise(
            given_up(error, "not all nodes became ready"),
            console.unwrap_or_default(),
            "run the same command again to keep waiting; a worker that restarted comes back when the control plane answers, and its console says \
             what it waits for; if it never does, replace it: `constellation node remove NAME --lost` (its data is lost), then run the same \
             command again",
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
        version: info.and_then(|info| info.kubelet_version.parse().ok()),
        boot_id: info.and_then(|info| info.boot_id.parse().ok()),
        renewed,
    }
}

/// Takes into the state which machines are part of the cluster, and in which boot those that are not missing became ready. Whether that
/// changed it.
fn remember(
    state: &mut ClusterState,
    seen: &BTreeMap<NodeName, Seen>,
    machines: &[Machine],
    missing: &BTreeMap<NodeName, &str>,
) -> bool {
    let before = (state.members.len(), state.boots.clone());
    for (name, node) in seen {
        // Of other nodes, there may be any number.
        let Some(start) = start_of(machines, name) else {
            continue;
        };
        state.members.insert(name.clone());
        if let Some(boot_id) = node.boot_id.filter(|_| !missing.contains_key(name)) {
            let start = start.to_owned();
            state.boots.insert(name.clone(), Boot { start, boot_id });
        }
    }
    before != (state.members.len(), state.boots.clone())
}

/// The nodes that are wanted and not ready, with the reason.
fn missing(
    wanted: impl Iterator<Item = NodeName>,
    state: &ClusterState,
    seen: &BTreeMap<NodeName, Seen>,
    machines: &[Machine],
    freshness: &Freshness,
) -> BTreeMap<NodeName, &'static str> {
    let why = |name: &NodeName| {
        let start = start_of(machines, name).unwrap_or_default();
        match seen.get(name) {
            None => Some("not part of the cluster"),
            Some(node) if !freshness.is_fresh(name, node, start, state.boots.get(name)) => {
                Some("not heard from since its machine started")
            }
            Some(node) if !node.ready => Some("not ready"),
            Some(_) => None,
        }
    };
    wanted.filter_map(|name| why(&name).map(|why| (name, why))).collect()
}

fn start_of<'a>(machines: &'a [Machine], name: &NodeName) -> Option<&'a str> {
    let machine = machines.iter().find(|machine| machine.name == *name);
    machine.map(|machine| machine.start.as_str())
}

#[cfg(test)]
mod tests {
    use cluster_types::{BootId, NodeRole};
    use infrastructure::{MachineStatus, NodePorts};
    use k8s_openapi::api::core::v1::{NodeStatus, NodeSystemInfo};

    use super::*;

    fn worker() -> NodeName {
        "worker-0".parse().unwrap()
    }

    fn started(start: &str) -> [Machine; 1] {
        [Machine {
            name: worker(),
            role: NodeRole::Worker,
            address: [192, 168, 77, 10].into(),
            host: "127.0.0.1".to_owned(),
            ports: NodePorts {
                bootstrapper: 0,
                kubernetes: 0,
                verify_http: 0,
                verify: 0,
                join: 0,
            },
            start: start.to_owned(),
            status: MachineStatus::Running,
        }]
    }

    /// Of a number.
    fn boot_id(number: u8) -> BootId {
        format!("{number:032}").parse().unwrap()
    }

    fn listed(ready: bool, boot: u8) -> BTreeMap<NodeName, Seen> {
        let node = Seen {
            ready,
            version: None,
            boot_id: Some(boot_id(boot)),
            renewed: Some("10:00".to_owned()),
        };
        BTreeMap::from([(worker(), node)])
    }

    fn boot(start: &str, boot: u8) -> Boot {
        Boot {
            start: start.to_owned(),
            boot_id: boot_id(boot),
        }
    }

    /// Takes a look as `wait` does. What is missing, and whether the state has changed.
    fn look(
        state: &mut ClusterState,
        freshness: &mut Freshness,
        seen: &BTreeMap<NodeName, Seen>,
        start: &str,
    ) -> (Option<&'static str>, bool) {
        freshness.look(seen);
        let machines = started(start);
        let missing = missing([worker()].into_iter(), state, seen, &machines, freshness);
        let changed = remember(state, seen, &machines, &missing);
        (missing.get(&worker()).copied(), changed)
    }

    #[test]
    fn a_node_is_waited_for_until_it_is_ready_in_the_present_start_and_then_remembered() {
        let (mut state, mut freshness) = (ClusterState::new(), Freshness::new());
        state.boots.insert(worker(), boot("1", 1));
        let not_heard = Some("not heard from since its machine started");
        for (seen, expected) in [
            // It becomes a member by being listed.
            (listed(true, 1), (not_heard, true)),
            (listed(true, 1), (not_heard, false)),
            (listed(false, 2), (Some("not ready"), false)),
        ] {
            assert_eq!(look(&mut state, &mut freshness, &seen, "2"), expected);
            assert_eq!(state.boots[&worker()], boot("1", 1));
        }
        assert!(state.members.contains(&worker()));
        let ready = listed(true, 2);
        assert_eq!(look(&mut state, &mut freshness, &ready, "2"), (None, true));
        assert_eq!(state.boots[&worker()], boot("2", 2));
        // The next command knows it.
        assert_eq!(look(&mut state, &mut Freshness::new(), &ready, "2"), (None, false));
    }

    #[test]
    fn only_a_uuid_is_stored_as_boot_id() {
        let info = NodeSystemInfo {
            boot_id: "b".repeat(2 << 20),
            ..NodeSystemInfo::default()
        };
        let status = NodeStatus {
            node_info: Some(info),
            ..NodeStatus::default()
        };
        let node = Node {
            status: Some(status),
            ..Node::default()
        };
        let mut state = ClusterState::new();
        let seen = BTreeMap::from([(worker(), seen(&node, None))]);
        remember(&mut state, &seen, &started("1"), &BTreeMap::new());
        assert!(state.members.contains(&worker()));
        assert!(state.boots.is_empty());
    }

    #[test]
    fn a_node_without_a_machine_is_not_stored() {
        let mut state = ClusterState::new();
        remember(&mut state, &listed(true, 1), &[], &BTreeMap::new());
        assert!(state.members.is_empty() && state.boots.is_empty());
    }

    #[test]
    fn a_node_that_is_not_listed_is_not_part_of_the_cluster() {
        let mut state = ClusterState::new();
        let looked = look(&mut state, &mut Freshness::new(), &BTreeMap::new(), "1");
        assert_eq!(looked, (Some("not part of the cluster"), false));
        assert!(state.members.is_empty());
    }
}
