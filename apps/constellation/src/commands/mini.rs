//! `mini up` and `mini down`: a cluster on this machine without any preparation.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use atomic_file::Access;
use attestation::Variants;
use cluster_config::{InitProgress, Workspace, names};
use error_report::explain_denied;
use key_derivation::MasterSecret;

use crate::arguments::{Confirmation, Sources};
use crate::commands::terminate::{End, end};
use crate::commands::{apply, config};
use crate::output::note;
use crate::providers::Providers;
use crate::unknown::state_or_new;

/// Creates the cluster, and first a configuration if there is none.
pub(crate) async fn up(
    folder: &Path,
    sources: &Sources,
    providers: &dyn Providers,
    variants: &dyn Variants,
) -> Result<()> {
    let created = fs::create_dir_all(folder).map_err(|error| explain_denied(folder, error));
    created.with_context(|| format!("cannot create {}", folder.display()))?;
    let workspace = Workspace::open(folder)?;
    // The text may come from a mirror that answers late. Meanwhile, other commands can use the workspace.
    let text = if workspace.has(names::CONFIG)? {
        if sources.is_any() {
            note("using the existing constellation-conf.yaml; options for a new one are ignored");
        }
        None
    } else {
        Some(config::text(&workspace, "mini".to_owned(), sources, variants).await?)
    };
    let lock = workspace.lock()?;
    let mut state = state_or_new(&workspace, providers)?;
    if let Some(text) = text
        && !workspace.has(names::CONFIG)?
    {
        workspace.write_own(&mut state, names::CONFIG, text.as_bytes(), Access::Everyone)?;
    }
    // `apply` would create one that belongs to the user.
    if state.init != InitProgress::Done && !workspace.has(names::MASTER_SECRET)? {
        let secret = MasterSecret::generate().to_json();
        workspace.write_own(&mut state, names::MASTER_SECRET, secret.as_bytes(), Access::Owner)?;
    }
    drop(lock);
    // Creating a new cluster needs no confirmation; removing one does.
    apply::run(&workspace, true, providers, variants).await
}

/// Terminates the cluster and removes everything that was written for it, including configuration and master secret if
/// `mini up` created them.
pub(crate) fn down(workspace: &Workspace, confirmation: &Confirmation, providers: &dyn Providers) -> Result<()> {
    end(
        workspace,
        confirmation,
        providers,
        &End {
            question: "This destroys the cluster on this machine, including its disks and keys. Do you want to continue?",
            done: "The cluster was removed.",
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
