//! `config generate`: writes a configuration for the operator to edit.

use std::path::Path;

use anyhow::{Result, anyhow};
use attestation::Variants;
use camino::Utf8PathBuf;
use cluster_config::{ClusterConfig, ExampleOptions, MirrorSource, Workspace, example};
use digest::Digest;
use kubernetes_components::MIRROR_DOCUMENT;

use crate::advice::Advise;
use crate::arguments::{Provider, Sources};
use crate::mirror::{self, Offer};
use crate::output::say;

const HOW_TO_PIN: &str =
    "pass --components-digest with the digest that `sha256sum components.json` prints where the mirror was filled";

/// Writes a configuration if there is none.
pub(crate) async fn generate(
    workspace: &Workspace,
    provider: Provider,
    name: String,
    sources: &Sources,
    variants: &dyn Variants,
) -> Result<()> {
    let Provider::Qemu = provider;
    let text = text(workspace, name, sources, variants).await?;
    let _lock = workspace.lock()?;
    let path = workspace
        .create_config(&text)
        .advise("edit it, or remove it so that a new one is written")?;
    say(&format!("Configuration written to {}", path.display()));
    Ok(())
}

/// The text of a valid configuration.
pub(crate) async fn text(
    workspace: &Workspace,
    name: String,
    sources: &Sources,
    variants: &dyn Variants,
) -> Result<String> {
    let defaults = ExampleOptions::default();
    let image = sources.image.as_deref().map(absolute).transpose()?;
    let mirror = match &sources.mirror {
        Some(MirrorSource::Folder(folder)) => MirrorSource::Folder(absolute(folder)?.into()),
        Some(http) => http.clone(),
        None => defaults.mirror,
    };
    let offered = offer_of(workspace, &mirror, sources.components_digest).await?;
    let kubernetes_version = match (&sources.kubernetes, &offered) {
        (Some(version), _) => version.to_string(),
        (None, Some(offered)) => offered.list.kubernetes_version().to_string(),
        (None, None) => defaults.kubernetes_version,
    };
    let text = example(&ExampleOptions {
        name,
        image: image.unwrap_or(defaults.image),
        variant: variants.supported()[0],
        mirror,
        kubernetes_version,
        components_digest: offered.map(|offered| offered.digest).or(sources.components_digest),
    });
    // Arguments go through the same checks as an edited file.
    ClusterConfig::parse(&text, workspace.folder())?;
    Ok(text)
}

/// The mirror's list, if it can be known now: a folder may be filled later, and an address without a digest is not contacted.
async fn offer_of(workspace: &Workspace, mirror: &MirrorSource, pinned: Option<Digest>) -> Result<Option<Offer>> {
    let source = match mirror {
        MirrorSource::Folder(folder) => MirrorSource::Folder(workspace.folder().join(folder)),
        http => http.clone(),
    };
    match (&source, pinned) {
        (MirrorSource::Folder(folder), _) if !folder.join(MIRROR_DOCUMENT).exists() => Ok(None),
        (MirrorSource::Http(_), None) => Ok(None),
        _ => mirror::load_list(&source, pinned, HOW_TO_PIN).await.map(Some),
    }
}

/// Relative paths on the command line start at the current folder; those in the configuration start at the workspace.
fn absolute(path: impl AsRef<Path>) -> Result<Utf8PathBuf> {
    let path = std::path::absolute(path)?;
    Utf8PathBuf::from_path_buf(path).map_err(|path| anyhow!("the path {path:?} is not valid UTF-8"))
}
