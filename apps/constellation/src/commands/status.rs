//! `status`: the machines, and the nodes as Kubernetes sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use cluster_config::{InitProgress, Workspace, names};
use infrastructure::MachineStatus;

use crate::commands::nodes::{self, Seen};
use crate::kubeconfig;
use crate::output::print;
use crate::providers::Providers;

/// Time limit for the API server: a cluster that does not answer must not make the command hang.
const LIMIT: Duration = Duration::from_secs(10);

/// Prints what is known, and changes nothing.
pub(crate) async fn run(workspace: &Workspace, providers: &dyn Providers) -> Result<()> {
    let Some(state) = workspace.state()? else {
        print("There is no cluster here. Create one with `constellation mini up` or `constellation apply`.")?;
        return Ok(());
    };
    match (state.init, state.cluster_id) {
        (InitProgress::Done, Some(id)) => print(&format!("Cluster {id}"))?,
        (InitProgress::Started, _) => print("Cluster: creation was interrupted; `constellation apply` starts again")?,
        _ => print("Cluster: not created yet; `constellation apply` continues")?,
    }
    let seen = if workspace.has(names::ADMIN_CONF)? {
        seen(workspace).await
    } else {
        Err("not running yet".to_owned())
    };
    if let Err(reason) = &seen {
        print(&format!("Kubernetes: {reason}"))?;
    }
    let seen = seen.unwrap_or_default();
    print(&format!(
        "{:<20} {:<14} {:<15} {:<9} {}",
        "NODE", "ROLE", "ADDRESS", "MACHINE", "KUBERNETES"
    ))?;
    for machine in providers.existing(workspace)?.machines()? {
        let (status, reason) = match &machine.status {
            MachineStatus::NotMade => ("absent", None),
            MachineStatus::Running => ("running", None),
            MachineStatus::Stopped { reason, .. } => ("stopped", Some(reason)),
            MachineStatus::Unknown => ("unknown", None),
        };
        let (name, role, address) = (
            machine.name.to_string(),
            machine.role.to_string(),
            machine.address.to_string(),
        );
        let kubernetes = describe(seen.get(&name));
        print(&format!("{name:<20} {role:<14} {address:<15} {status:<9} {kubernetes}"))?;
        if let Some(reason) = reason {
            print(&format!("  {reason}"))?;
        }
    }
    Ok(())
}

async fn seen(workspace: &Workspace) -> Result<BTreeMap<String, Seen>, String> {
    let client = kubeconfig::client(workspace)
        .await
        .map_err(|error| format!("{error:#}"))?;
    let answer = tokio::time::timeout(LIMIT, nodes::list(&client)).await;
    let answer = answer.map_err(|_| format!("no answer within {} s", LIMIT.as_secs()))?;
    answer.map_err(|error| kubeconfig::in_words(&error))
}

fn describe(node: Option<&Seen>) -> String {
    match node {
        Some(node) if node.ready => format!("Ready {}", node.version),
        Some(node) => format!("not ready {}", node.version),
        None => "-".to_owned(),
    }
}
