//! `config generate`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cluster_config::{ClusterConfig, ExampleOptions, MirrorSource, Workspace, example};

use crate::advice::Advise;
use crate::arguments::{Provider, Sources};
use crate::mirror;
use crate::output::say;

/// Writes a configuration where there is none.
pub(crate) async fn generate(workspace: &Workspace, provider: Provider, name: String, sources: &Sources) -> Result<()> {
    let Provider::Qemu = provider;
    let _lock = workspace.lock()?;
    let text = text(workspace, name, sources).await?;
    let path = workspace
        .create_config(&text)
        .next("edit it, or remove it to have a new one written")?;
    say(&format!("Configuration written to {}", path.display()));
    Ok(())
}

/// The text of a configuration that is valid.
pub(crate) async fn text(workspace: &Workspace, name: String, sources: &Sources) -> Result<String> {
    let defaults = ExampleOptions::default();
    let image = sources.image.as_deref().map(absolute).transpose()?;
    let mirror = sources.mirror.as_deref().map(absolute_mirror).transpose()?;
    let mut options = ExampleOptions {
        name,
        image: image.map_or(defaults.image, |path| path.display().to_string()),
        mirror: mirror.unwrap_or(defaults.mirror),
        kubernetes_version: defaults.kubernetes_version,
    };
    options.kubernetes_version = match &sources.kubernetes {
        Some(version) => version.to_string(),
        None => version_of(workspace, &options)
            .await
            .unwrap_or(options.kubernetes_version),
    };
    let text = example(&options);
    // What was typed goes through the same checks as what is edited.
    ClusterConfig::parse(&text, workspace.folder())?;
    Ok(text)
}

/// What the mirror holds, if it is there already.
async fn version_of(workspace: &Workspace, options: &ExampleOptions) -> Option<String> {
    let source = match mirror::source(&options.mirror) {
        MirrorSource::Folder(folder) => MirrorSource::Folder(workspace.folder().join(folder)),
        http => http,
    };
    let list = mirror::load_list(&source).await.ok()?;
    Some(list.kubernetes_version().to_string())
}

/// What is typed starts at the current folder, what is written at the workspace.
fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(std::path::absolute(path)?)
}

fn absolute_mirror(text: &str) -> Result<String> {
    match mirror::source(text) {
        MirrorSource::Folder(folder) if !text.is_empty() && !text.contains("://") => {
            Ok(absolute(&folder)?.display().to_string())
        }
        _ => Ok(text.to_owned()),
    }
}
