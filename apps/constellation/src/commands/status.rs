//! `status`: the machines, and the nodes as Kubernetes sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use cluster_config::{ClusterState, InitProgress, Workspace, names};
use cluster_types::NodeName;
use futures_util::future::join_all;
use infrastructure::{Machine, MachineStatus};

use crate::commands::nodes;
use crate::freshness::Seen;
use crate::output::{print, shown};
use crate::providers::Providers;
use crate::unknown::{self, UnknownCluster};
use crate::{kubeconfig, machines};

/// Time limit for the API server: a cluster that does not answer must not make the command hang.
const LIMIT: Duration = Duration::from_secs(10);

/// Kubernetes keeps the Node of a machine that is gone.
const NOT_A_MACHINE: &str = "none of the machines of this workspace: a removal was interrupted, or a cluster-admin made it a node without attestation";

/// Prints what is known, and changes nothing.
pub(crate) async fn run(workspace: &Workspace, providers: &dyn Providers) -> Result<()> {
    // Looked at first: a command that ends now has stored what it did.
    let busy = workspace.is_busy()?;
    let state = workspace.state()?;
    let made = providers.existing(workspace)?.machines()?;
    let is_made = state.as_ref().is_some_and(|state| state.init == InitProgress::Done);
    if busy && !is_made {
        print("Cluster: another constellation command is creating or terminating it")?;
    } else {
        let unknown = unknown::find(workspace, state.as_ref(), &made)?;
        print(&headline(state.as_ref(), unknown.as_ref()))?;
    }
    if state.is_none() && made.is_empty() {
        return Ok(());
    }
    let silent = join_all(made.iter().map(|machine| is_silent(state.as_ref(), machine)));
    let (seen, silent) = if workspace.has(names::ADMIN_CONF)? {
        tokio::join!(seen(workspace), silent)
    } else {
        (Err("not running yet".to_owned()), silent.await)
    };
    let does_not_answer = "does not answer".to_owned();
    if let Err(reason) = &seen {
        print(&format!("Kubernetes: {reason}"))?;
    }
    let seen = seen.unwrap_or_default();
    print(&format!(
        "{:<20} {:<14} {:<15} {:<9} {}",
        "NODE", "ROLE", "ADDRESS", "MACHINE", "KUBERNETES"
    ))?;
    for (machine, silent) in made.iter().zip(silent) {
        let reason = match &machine.status {
            MachineStatus::Running if silent => Some(&does_not_answer),
            MachineStatus::Paused { reason } | MachineStatus::Stopped { reason, .. } => Some(reason),
            MachineStatus::Running | MachineStatus::NotMade | MachineStatus::Unknown => None,
        };
        let status = machine.status.word();
        let (name, role, address) = (
            machine.name.to_string(),
            machine.role.to_string(),
            machine.address.to_string(),
        );
        let kubernetes = describe(seen.get(&machine.name));
        print(&format!("{name:<20} {role:<14} {address:<15} {status:<9} {kubernetes}"))?;
        if let Some(reason) = reason {
            print(&format!("  {}", shown(reason)))?;
        }
    }
    let unknown = seen
        .iter()
        .filter(|(name, _)| made.iter().all(|machine| machine.name != **name));
    for (name, node) in unknown {
        let (name, kubernetes) = (name.as_str(), describe(Some(node)));
        print(&format!(
            "{name:<20} {:<14} {:<15} {:<9} {kubernetes}",
            "-", "-", "none"
        ))?;
        print(&format!(
            "  {NOT_A_MACHINE}; to remove it and free its name, run `constellation node remove {name}`"
        ))?;
    }
    Ok(())
}

/// What is known of the cluster as a whole.
fn headline(state: Option<&ClusterState>, unknown: Option<&UnknownCluster>) -> String {
    if let Some(unknown) = unknown {
        return format!("Cluster: {unknown}\nNext: {}", unknown.next);
    }
    let Some(state) = state else {
        return "There is no cluster here. Create one with `constellation mini up` or `constellation apply`."
            .to_owned();
    };
    match (state.init, state.cluster_id) {
        (InitProgress::Done, Some(id)) => format!("Cluster {id}"),
        (InitProgress::Started, _) => {
            "Cluster: creation did not finish; run `constellation apply` to start over".to_owned()
        }
        _ => "Cluster: not created yet; `constellation apply` continues".to_owned(),
    }
}

/// Whether a node of the cluster runs and does not answer. One that is not part of the cluster yet has nothing that would.
async fn is_silent(state: Option<&ClusterState>, machine: &Machine) -> bool {
    let is_member = state.is_some_and(|state| state.members.contains(&machine.name));
    let is_asked = machine.status == MachineStatus::Running && is_member;
    is_asked && !machines::answers(machine).await
}

async fn seen(workspace: &Workspace) -> Result<BTreeMap<NodeName, Seen>, String> {
    let client = kubeconfig::client(workspace)
        .await
        .map_err(|error| shown(&format!("{error:#}")))?;
    let answer = tokio::time::timeout(LIMIT, nodes::list(&client)).await;
    let answer = answer.map_err(|_| format!("no answer within {} s", LIMIT.as_secs()))?;
    answer.map_err(|error| kubeconfig::in_words(&error))
}

fn describe(node: Option<&Seen>) -> String {
    let Some(node) = node else { return "-".to_owned() };
    let ready = if node.ready { "Ready" } else { "not ready" };
    match &node.version {
        Some(version) => format!("{ready} {version}"),
        None => format!("{ready} (unknown version)"),
    }
}
