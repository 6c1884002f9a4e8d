//! `node`: which machines have the cluster's node names, and how a worker leaves.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow};
use cluster_config::{ClusterState, InitProgress, Workspace};
use cluster_objects::Cluster;
use cluster_types::NodeName;
use error_report::Chain;
use infrastructure::Machine;
use kube::Client;
use terminal::Progress;

use crate::advice::Advise;
use crate::arguments::NodeRemoval;
use crate::commands::nodes;
use crate::freshness::Seen;
use crate::kubeconfig;
use crate::output::{confirm, print, say, shown};
use crate::providers::Providers;
use crate::removal::{Removal, can_be_drained, worker};
use crate::unknown::state_or_new;

/// Digits of an identity that tell machines apart.
const DIGITS: usize = 12;
const NO_CLUSTER: &str = "create one with `constellation apply`";

/// Prints every name of a node that the workspace, Kubernetes or the records know. Changes nothing.
pub(crate) async fn list(workspace: &Workspace, providers: &dyn Providers) -> Result<()> {
    let state = state_or_new(workspace, providers)?;
    must_have_a_cluster(&state)?;
    let machines = providers.existing(workspace)?.machines()?;
    let client = kubeconfig::client(workspace).await?;
    let (seen, owners) = look(&client).await?;
    print(&format!(
        "{:<20} {:<14} {:<9} {:<10} {}",
        "NODE", "ROLE", "MACHINE", "KUBERNETES", "NAME BELONGS TO"
    ))?;
    for line in lines(&state, &machines, &seen, &owners) {
        print(&line)?;
    }
    Ok(())
}

fn lines(
    state: &ClusterState,
    machines: &[Machine],
    seen: &BTreeMap<NodeName, Seen>,
    owners: &BTreeMap<String, String>,
) -> Vec<String> {
    let made = machines.iter().map(|machine| machine.name.to_string());
    let listed = seen.keys().map(ToString::to_string);
    let names: BTreeSet<_> = made.chain(listed).chain(owners.keys().cloned()).collect();
    let line = |name: &String| {
        let machine = machines.iter().find(|machine| machine.name.as_str() == name);
        let node = seen
            .iter()
            .find(|(node, _)| node.as_str() == name)
            .map(|(_, node)| node);
        let affirmed = state.identities.iter().find(|(node, _)| node.as_str() == name);
        let affirmed = affirmed.map(|(_, identity)| identity.to_string());
        let (role, status) = machine.map_or(("-".to_owned(), "none"), |machine| {
            (machine.role.to_string(), machine.status.word())
        });
        let kubernetes = match node {
            Some(Seen { ready: true, .. }) => "Ready",
            Some(_) => "not ready",
            None => "-",
        };
        let owner = belongs_to(owners.get(name).map(String::as_str), affirmed.as_deref());
        let name = shown(name);
        format!("{name:<20} {role:<14} {status:<9} {kubernetes:<10} {owner}")
    };
    names.iter().map(line).collect()
}

/// Whoever may write the records chooses what is in them; whom `apply` affirmed is in the state.
fn belongs_to(owner: Option<&str>, affirmed: Option<&str>) -> String {
    let short = |identity: &str| shown(&identity.chars().take(DIGITS).collect::<String>());
    match (owner, affirmed) {
        (None, _) => "nobody".to_owned(),
        (Some(owner), Some(affirmed)) if owner == affirmed => format!("its machine, {}", short(owner)),
        (Some(owner), Some(affirmed)) => {
            format!("machine {}, but `apply` affirmed {}", short(owner), short(affirmed))
        }
        (Some(owner), None) => format!("machine {}", short(owner)),
    }
}

/// Takes a worker out of the cluster.
pub(crate) async fn remove(workspace: &Workspace, removal: &NodeRemoval, providers: &dyn Providers) -> Result<()> {
    let NodeRemoval {
        name,
        lost,
        confirmation,
    } = removal;
    let _lock = workspace.lock()?;
    let mut state = state_or_new(workspace, providers)?;
    must_have_a_cluster(&state)?;
    let provider = providers.existing(workspace)?;
    let machine = worker(&*provider, &state, name)?;
    let lost = *lost || !can_be_drained(machine.as_ref());
    let client = kubeconfig::impatient_client(workspace).await?;
    if machine.is_none() {
        must_be_known(&state, &client, name).await?;
    }
    confirm(&question(name, machine.is_some(), lost), confirmation.yes)?;
    let progress = Progress::start();
    progress
        .step(&format!("removing {name}"), async |step| {
            let mut removal = Removal {
                workspace,
                state: &mut state,
                provider: &*provider,
                client: &client,
            };
            removal.remove(name, lost, &|detail| step.detail(detail)).await
        })
        .await?;
    say(&format!(
        "{name} was removed, and its name is free. `constellation apply` makes a new machine of that name if the configuration has that many workers."
    ));
    Ok(())
}

/// A name that was mistyped is not one that was removed.
async fn must_be_known(state: &ClusterState, client: &Client, name: &NodeName) -> Result<()> {
    let (nodes, names) = look(client).await?;
    let is_known = state.members.contains(name)
        || state.identities.contains_key(name)
        || nodes.contains_key(name)
        || names.contains_key(name.as_str());
    if is_known {
        return Ok(());
    }
    Err(anyhow!("there is no machine, Node or record of {name}")).advise("see the names with `constellation node list`")
}

/// The Nodes, and whose each name is.
async fn look(client: &Client) -> Result<(BTreeMap<NodeName, Seen>, BTreeMap<String, String>)> {
    let looked = async {
        let seen = nodes::list(client).await;
        let seen = seen.map_err(|error| anyhow!(kubeconfig::in_words(&error)))?;
        let owners = Cluster::new(client.clone()).owners().await;
        let owners = owners.map_err(|error| anyhow!(shown(&Chain(&error).to_string())))?;
        anyhow::Ok((seen, owners))
    };
    looked
        .await
        .advise("check the control plane with `constellation status`")
}

fn question(name: &NodeName, has_machine: bool, lost: bool) -> String {
    if !has_machine {
        return format!(
            "{name} has no machine here. This deletes its Node and frees its name. Do you want to continue?"
        );
    }
    let pods = if lost {
        "does not wait for the pods"
    } else {
        "moves the pods"
    };
    format!("This {pods} of {name}, ends its machine and destroys its disk. Do you want to continue?")
}

fn must_have_a_cluster(state: &ClusterState) -> Result<()> {
    if state.init == InitProgress::Done {
        return Ok(());
    }
    Err(anyhow!("there is no cluster here")).advise(NO_CLUSTER)
}

#[cfg(test)]
mod tests {
    use digest::Digest;
    use infrastructure::{MachineStatus, NodePorts};

    use super::*;

    #[test]
    fn every_name_says_whose_it_is() {
        let name = |name: &str| name.parse::<NodeName>().unwrap();
        let identity = |byte: u8| Digest::new([byte; 32]);
        let machine = |node: &str| Machine {
            name: name(node),
            role: cluster_types::NodeRole::Worker,
            address: [192, 168, 77, 10].into(),
            host: String::new(),
            ports: NodePorts {
                bootstrapper: 0,
                kubernetes: 0,
                verify_http: 0,
                verify: 0,
                join: 0,
            },
            start: String::new(),
            status: MachineStatus::Running,
        };
        let node = |ready| Seen {
            ready,
            version: None,
            boot_id: None,
            renewed: None,
        };
        let mut state = ClusterState::new();
        for (node, byte) in [("worker-0", 1), ("worker-1", 2)] {
            state.identities.insert(name(node), identity(byte));
        }
        let machines = ["worker-0", "worker-1", "worker-2"].map(machine);
        let seen = [("worker-0", true), ("worker-1", false), ("worker-8", true)];
        let seen = seen.map(|(node_name, ready)| (name(node_name), node(ready)));
        let owners = [("worker-0", 1), ("worker-1", 3), ("worker-9", 4)];
        let owners = owners.map(|(node, byte)| (node.to_owned(), identity(byte).to_string()));
        let lines = lines(&state, &machines, &BTreeMap::from(seen), &BTreeMap::from(owners));
        let words: Vec<Vec<_>> = lines.iter().map(|line| line.split_whitespace().collect()).collect();
        let expected: [&[&str]; 5] = [
            &[
                "worker-0",
                "worker",
                "running",
                "Ready",
                "its",
                "machine,",
                "010101010101",
            ],
            &[
                "worker-1",
                "worker",
                "running",
                "not",
                "ready",
                "machine",
                "030303030303,",
                "but",
                "`apply`",
                "affirmed",
                "020202020202",
            ],
            &["worker-2", "worker", "running", "-", "nobody"],
            &["worker-8", "-", "none", "Ready", "nobody"],
            &["worker-9", "-", "none", "-", "machine", "040404040404"],
        ];
        assert_eq!(words, expected);
    }
}
