//! A cluster that the state file does not know, because the file is missing or older. It looks like a failed attempt, whose machines
//! and disks are replaced; so whoever may change something looks here first.

use std::fmt;

use anyhow::{Error, Result, anyhow};
use cluster_config::{ClusterState, InitProgress, Workspace, WorkspaceError, names};
use infrastructure::Machine;

use crate::advice::advise;
use crate::providers::Providers;

const RESTORE: &str = "restore constellation-state.yaml from a backup. Only if the cluster is no longer needed, run `constellation \
                       terminate`: it destroys all data of it";
const MOVE: &str = "if a cluster is still there, restore constellation-state.yaml from a backup; otherwise move the file to another \
                    folder";

/// What is there and cannot be explained by the state.
#[derive(Debug)]
pub(crate) struct UnknownCluster {
    found: String,
    pub(crate) next: &'static str,
}

/// The state, or a fresh one where nothing shows that there was one before.
pub(crate) fn state_or_new(workspace: &Workspace, providers: &dyn Providers) -> Result<ClusterState> {
    let recorded = workspace.state()?;
    match find(
        workspace,
        recorded.as_ref(),
        &providers.existing(workspace)?.machines()?,
    )? {
        Some(unknown) => Err(unknown.into()),
        None => Ok(recorded.unwrap_or_else(ClusterState::new)),
    }
}

/// A cluster that may be there though the state does not say so: machines without a state, or a kubeconfig that a state without a
/// cluster has not recorded.
pub(crate) fn find(
    workspace: &Workspace,
    recorded: Option<&ClusterState>,
    machines: &[Machine],
) -> Result<Option<UnknownCluster>> {
    if recorded.is_some_and(|state| state.init == InitProgress::Done) {
        return Ok(None);
    }
    let listed = list(machines);
    if recorded.is_none() && !machines.is_empty() {
        let found = format!(
            "{} is missing, but there are machines of a cluster: {listed}",
            names::STATE
        );
        return Ok(Some(UnknownCluster { found, next: RESTORE }));
    }
    let own = match recorded {
        Some(state) => workspace.check_own(state, names::ADMIN_CONF),
        None => workspace.check_own(&ClusterState::new(), names::ADMIN_CONF),
    };
    match own {
        Err(foreign @ WorkspaceError::Foreign(_)) if machines.is_empty() => {
            let found = foreign.to_string();
            Ok(Some(UnknownCluster { found, next: MOVE }))
        }
        Err(foreign @ WorkspaceError::Foreign(_)) => {
            let known = "knows of no cluster; it may be older than the machines";
            let found = format!("{foreign}. {} {known}: {listed}", names::STATE);
            Ok(Some(UnknownCluster { found, next: RESTORE }))
        }
        own => Ok(own.map(|_| None)?),
    }
}

fn list(machines: &[Machine]) -> String {
    let described = machines
        .iter()
        .map(|machine| format!("{} ({})", machine.name, machine.status.word()));
    described.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for UnknownCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)
    }
}

impl From<UnknownCluster> for Error {
    fn from(unknown: UnknownCluster) -> Self {
        advise(anyhow!("{unknown}; nothing was done"), Vec::new(), unknown.next)
    }
}
