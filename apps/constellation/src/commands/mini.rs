//! `mini up` and `mini down`: a cluster on this machine with nothing to prepare.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cluster_config::{ClusterState, Workspace, names};
use digest::Digest;

use crate::arguments::{Confirmation, Sources};
use crate::commands::{apply, config, terminate};
use crate::output::{confirm, note, say};
use crate::providers::Providers;

/// Makes the cluster. A configuration is written if there is none.
pub(crate) async fn up(folder: &Path, sources: &Sources, providers: &dyn Providers) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let workspace = Workspace::open(folder)?;
    let lock = workspace.lock()?;
    if workspace.has(names::CONFIG) {
        if sources.image.is_some() || sources.mirror.is_some() || sources.kubernetes.is_some() {
            note("constellation-conf.yaml is there and decides: --image, --mirror and --kubernetes are not used");
        }
    } else {
        let text = config::text(&workspace, "mini".to_owned(), sources).await?;
        let mut state = workspace.state()?.unwrap_or_else(ClusterState::new);
        state.generated_config = Some(Digest::of(text.as_bytes()).to_string());
        workspace.save_state(&state)?;
        workspace.create_config(&text)?;
    }
    drop(lock);
    // Making a cluster of one's own needs no question; taking one away does.
    apply::run(&workspace, true, providers).await
}

/// Ends the cluster and removes everything that `mini up` made, secrets included. A configuration that was edited stays.
pub(crate) fn down(workspace: &Workspace, confirmation: &Confirmation, providers: &dyn Providers) -> Result<()> {
    let _lock = workspace.lock()?;
    let files = [names::STATE, names::MASTER_SECRET, names::ADMIN_CONF];
    // Machines that cannot be listed are there all the same.
    let machines = providers.existing(workspace)?.machines();
    let anything =
        machines.map_or(true, |machines| !machines.is_empty()) || files.into_iter().any(|name| workspace.has(name));
    if anything {
        confirm(
            "This destroys the cluster on this machine with its disks and keys. Do you want to continue?",
            confirmation.yes,
        )?;
    }
    remove_everything(workspace, providers)?;
    say(if anything {
        "The cluster is gone."
    } else {
        "There is no cluster here."
    });
    Ok(())
}

/// Also what a file that was being replaced left behind.
fn remove_everything(workspace: &Workspace, providers: &dyn Providers) -> Result<()> {
    let config = generated_config(workspace);
    terminate::end_machines(workspace, providers)?;
    for name in [
        names::ADMIN_CONF,
        names::MASTER_SECRET,
        names::CLUSTER_LOG,
        names::TIMINGS,
    ] {
        workspace.remove(name)?;
    }
    if config {
        workspace.remove(names::CONFIG)?;
    }
    // Last: as long as anything else is there, so is this.
    Ok(workspace.remove(names::STATE)?)
}

/// Whether the configuration is the one that `mini up` wrote.
fn generated_config(workspace: &Workspace) -> bool {
    let Ok(Some(state)) = workspace.state() else {
        return false;
    };
    let Ok(text) = fs::read(workspace.path(names::CONFIG)) else {
        return false;
    };
    state.generated_config == Some(Digest::of(&text).to_string())
}
