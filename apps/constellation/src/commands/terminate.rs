//! `terminate`.

use anyhow::Result;
use cluster_config::{Workspace, names};

use crate::advice::Advise;
use crate::arguments::Confirmation;
use crate::output::{confirm, say};
use crate::providers::Providers;

/// Ends the machines and removes what belongs to them. Configuration, master secret and logs stay.
pub(crate) fn run(workspace: &Workspace, confirmation: &Confirmation, providers: &dyn Providers) -> Result<()> {
    let _lock = workspace.lock()?;
    confirm(
        "This ends all machines of the cluster and destroys their disks. Do you want to continue?",
        confirmation.yes,
    )?;
    end(workspace, providers)?;
    say("The cluster was terminated.");
    Ok(())
}

fn end(workspace: &Workspace, providers: &dyn Providers) -> Result<()> {
    end_machines(workspace, providers)?;
    workspace.remove(names::ADMIN_CONF)?;
    // Last: as long as a machine is there, so is this.
    Ok(workspace.remove(names::STATE)?)
}

/// Ends the machines and removes their disks.
pub(crate) fn end_machines(workspace: &Workspace, providers: &dyn Providers) -> Result<()> {
    providers
        .existing(workspace)?
        .destroy()
        .next("the same command again goes on where this one stopped")
}
