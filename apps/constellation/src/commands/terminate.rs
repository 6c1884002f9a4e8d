//! `terminate`, and what it has in common with `mini down`.

use anyhow::Result;
use cluster_config::{ClusterState, Workspace, WorkspaceError, names};

use crate::advice::Advise;
use crate::arguments::Confirmation;
use crate::output::{confirm, say};
use crate::providers::Providers;

const WITHOUT_THE_BUILD: &str = "nothing was done. If you no longer have that build, move the file to another folder and run the same \
                                 command again: it then ends the machines, and keeps all other files";

/// Terminates the machines and removes what belongs to them. Configuration and master secret are kept.
pub(crate) fn run(workspace: &Workspace, confirmation: &Confirmation, providers: &dyn Providers) -> Result<()> {
    end(
        workspace,
        confirmation,
        providers,
        &End {
            question: "This stops all machines of the cluster and destroys their disks. Do you want to continue?",
            done: "The cluster was terminated.",
            files: &[names::ADMIN_CONF, names::CLUSTER_LOG, names::TIMINGS],
        },
    )
}

/// How a command terminates a cluster.
pub(crate) struct End {
    pub(crate) question: &'static str,
    pub(crate) done: &'static str,
    /// The files to remove with the cluster, if they were written for it.
    pub(crate) files: &'static [&'static str],
}

/// Terminates a workspace's cluster, if there is one. Removes only what was written for it.
pub(crate) fn end(
    workspace: &Workspace,
    confirmation: &Confirmation,
    providers: &dyn Providers,
    how: &End,
) -> Result<()> {
    let _lock = workspace.lock()?;
    let state = state_or_damage(workspace)?;
    let provider = providers.existing(workspace)?;
    // Machines that cannot be listed may still exist.
    let machines = provider.machines().map_or(true, |machines| !machines.is_empty());
    if workspace.has(names::STATE)? || machines {
        confirm(how.question, confirmation.yes)?;
    }
    // This also removes machines that are in no list.
    provider
        .destroy()
        .advise("correct this, then run the same command again")?;
    let state = state.advise(
        "the machines were removed, but without this file the cluster's other files cannot be identified; repair it and run the \
         same command again, or delete it and the files you no longer need",
    )?;
    match &state {
        Some(state) => {
            remove_files(workspace, state, how.files)?;
            say(how.done);
        }
        None if machines => say(how.done),
        None => say("There is no cluster here."),
    }
    // This comes last: as long as anything else is left, so is the state.
    workspace.remove_state()?;
    tell_of_secret(workspace)
}

/// The state, or how it is damaged: its cluster can be terminated nevertheless. One that may not be damaged is an error, before anything is
/// destroyed.
fn state_or_damage(workspace: &Workspace) -> Result<Result<Option<ClusterState>, WorkspaceError>> {
    match workspace.state() {
        Err(other @ WorkspaceError::OtherState { .. }) => Err(other).advise(WITHOUT_THE_BUILD),
        read @ (Ok(_) | Err(WorkspaceError::State { .. } | WorkspaceError::NotText(_))) => Ok(read),
        Err(unreadable) => Err(unreadable.into()),
    }
}

fn remove_files(workspace: &Workspace, state: &ClusterState, files: &[&str]) -> Result<()> {
    for name in files {
        match workspace.remove_own(state, name) {
            Err(WorkspaceError::Foreign(_)) if *name == names::MASTER_SECRET || *name == names::CONFIG => {}
            Err(WorkspaceError::Foreign(path)) => say(&format!(
                "keeping {}: it was not written for this cluster, or has been changed since",
                path.display()
            )),
            removed => removed?,
        }
    }
    Ok(())
}

fn tell_of_secret(workspace: &Workspace) -> Result<()> {
    if workspace.has(names::MASTER_SECRET)? {
        let path = workspace.path(names::MASTER_SECRET);
        say(&format!(
            "The master secret is kept in {}. Remove it yourself if no cluster or backup needs it.",
            path.display()
        ));
    }
    Ok(())
}
