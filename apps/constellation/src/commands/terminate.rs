//! `terminate`, and what `mini down` has in common with it.

use anyhow::Result;
use cluster_config::{ClusterState, Workspace, WorkspaceError, names};

use crate::advice::Advise;
use crate::arguments::Confirmation;
use crate::output::{confirm, say};
use crate::providers::Providers;

/// Ends the machines and removes what belongs to them. Configuration and master secret stay.
pub(crate) fn run(workspace: &Workspace, confirmation: &Confirmation, providers: &dyn Providers) -> Result<()> {
    end(
        workspace,
        confirmation,
        providers,
        &End {
            question: "This ends all machines of the cluster and destroys their disks. Do you want to continue?",
            done: "The cluster was terminated.",
            files: &[names::ADMIN_CONF, names::CLUSTER_LOG, names::TIMINGS],
        },
    )
}

/// How a command ends a cluster.
pub(crate) struct End {
    pub(crate) question: &'static str,
    pub(crate) done: &'static str,
    /// What is removed with the cluster, as far as it was written for it.
    pub(crate) files: &'static [&'static str],
}

/// Ends the cluster of a workspace, if there is one. Nothing is removed that was not written for it.
pub(crate) fn end(
    workspace: &Workspace,
    confirmation: &Confirmation,
    providers: &dyn Providers,
    how: &End,
) -> Result<()> {
    let _lock = workspace.lock()?;
    let provider = providers.existing(workspace)?;
    // Machines that cannot be listed are there all the same.
    let machines = provider.machines().map_or(true, |machines| !machines.is_empty());
    if workspace.has(names::STATE)? || machines {
        confirm(how.question, confirmation.yes)?;
    }
    // Also what is left of machines that are in no list.
    provider
        .destroy()
        .next("the same command again goes on where this one stopped")?;
    let state = workspace.state().next(
        "the machines are gone. What else belongs to the cluster is not known without this file: correct it, or remove it and \
         what you do not need",
    )?;
    match &state {
        Some(state) => {
            remove_files(workspace, state, how.files)?;
            say(how.done);
        }
        None if machines => say(how.done),
        None => say("There is no cluster here."),
    }
    // Last: as long as anything else is there, so is this.
    workspace.remove_state()?;
    tell_of_secret(workspace)
}

fn remove_files(workspace: &Workspace, state: &ClusterState, files: &[&str]) -> Result<()> {
    for name in files {
        match workspace.remove_own(state, name) {
            Err(WorkspaceError::Foreign(_)) if *name == names::MASTER_SECRET || *name == names::CONFIG => {}
            Err(WorkspaceError::Foreign(path)) => say(&format!(
                "{} stays: it was not written for this cluster, or was changed since",
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
            "The master secret stays, in {}: remove it yourself if no cluster and no backup needs it.",
            path.display()
        ));
    }
    Ok(())
}
