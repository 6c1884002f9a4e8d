//! `terminate`.

use anyhow::Result;
use cluster_config::{Workspace, names};
use infrastructure::Provider;

use crate::advice::Advise;
use crate::arguments::Confirmation;
use crate::machines;
use crate::output::{confirm, say};

/// Ends the machines and removes what belongs to them. Configuration, master secret and logs stay.
pub(crate) fn run(workspace: &Workspace, confirmation: &Confirmation) -> Result<()> {
    let _lock = workspace.lock()?;
    confirm(
        "This ends all machines of the cluster and destroys their disks. Do you want to continue?",
        confirmation.yes,
    )?;
    end(workspace)?;
    say("The cluster was terminated.");
    Ok(())
}

fn end(workspace: &Workspace) -> Result<()> {
    end_machines(workspace)?;
    workspace.remove(names::ADMIN_CONF)?;
    // Last: as long as a machine is there, so is this.
    Ok(workspace.remove(names::STATE)?)
}

/// Ends the machines and removes their disks.
pub(crate) fn end_machines(workspace: &Workspace) -> Result<()> {
    machines::bare_provider(workspace)?
        .destroy()
        .next("the same command again goes on where this one stopped")
}
