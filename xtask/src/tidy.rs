//! `cargo xtask tidy`: rules about the tree that no compiler knows, one file each.

mod circles;
mod comments;
mod dependencies;
mod documents;
mod members;
mod modules;
mod names;
mod paths;
mod sources;
mod testdata;
mod units;

use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;

use sources::Sources;

/// Checks everything and lists all that is wrong.
pub(crate) fn run() -> Result<()> {
    let metadata = MetadataCommand::new().exec().context("running cargo metadata")?;
    let root = metadata.workspace_root.as_std_path();
    let sources = Sources::load(root)?;
    let problems = [
        dependencies::check(&metadata),
        circles::check(&metadata, &sources)?,
        comments::check(&sources),
        members::check(root, &metadata)?,
        testdata::check(&metadata),
        documents::check(root, &sources)?,
        units::check(root)?,
    ]
    .concat();
    if problems.is_empty() {
        Ok(())
    } else {
        bail!("tidy found:\n  {}", problems.join("\n  "))
    }
}
