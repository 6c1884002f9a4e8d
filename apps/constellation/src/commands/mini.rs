//! `mini up` and `mini down`: a cluster on this machine with nothing to prepare.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use atomic_file::Access;
use attestation::Variants;
use cluster_config::{ClusterState, InitProgress, Workspace, names};
use key_derivation::MasterSecret;

use crate::arguments::{Confirmation, Sources};
use crate::commands::terminate::{End, end};
use crate::commands::{apply, config};
use crate::output::note;
use crate::providers::Providers;

/// Makes the cluster. A configuration is written if there is none.
pub(crate) async fn up(
    folder: &Path,
    sources: &Sources,
    providers: &dyn Providers,
    variants: &dyn Variants,
) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let workspace = Workspace::open(folder)?;
    // The text may come from a mirror that answers late; meanwhile other commands can have the workspace.
    let text = if workspace.has(names::CONFIG)? {
        if sources.is_any() {
            note("constellation-conf.yaml is there and decides: options for a new one are not used");
        }
        None
    } else {
        Some(config::text(&workspace, "mini".to_owned(), sources, variants).await?)
    };
    let lock = workspace.lock()?;
    let mut state = workspace.state()?.unwrap_or_else(ClusterState::new);
    if let Some(text) = text
        && !workspace.has(names::CONFIG)?
    {
        workspace.write_own(&mut state, names::CONFIG, text.as_bytes(), Access::Everyone)?;
    }
    // `apply` would make one that it leaves to the user.
    if state.init != InitProgress::Done && !workspace.has(names::MASTER_SECRET)? {
        let secret = MasterSecret::generate().to_json();
        workspace.write_own(&mut state, names::MASTER_SECRET, secret.as_bytes(), Access::Owner)?;
    }
    drop(lock);
    // Making a cluster of one's own needs no question; taking one away does.
    apply::run(&workspace, true, providers, variants).await
}

/// Ends the cluster and removes everything that was written for it: also configuration and master secret, if `mini up` made
/// them.
pub(crate) fn down(workspace: &Workspace, confirmation: &Confirmation, providers: &dyn Providers) -> Result<()> {
    end(
        workspace,
        confirmation,
        providers,
        &End {
            question: "This destroys the cluster on this machine with its disks and keys. Do you want to continue?",
            done: "The cluster is gone.",
            files: &[
                names::ADMIN_CONF,
                names::MASTER_SECRET,
                names::CLUSTER_LOG,
                names::TIMINGS,
                names::CONFIG,
            ],
        },
    )
}
