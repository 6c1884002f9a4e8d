//! `mirror create`: fetches everything a component list names into a folder.

use std::path::Path;

use anyhow::{Context, Result};
use cluster_config::MirrorSource;
use digest::{Digest, oci};
use error_report::explain_denied;
use kubernetes_components::ComponentList;
use terminal::Progress;

use crate::advice::Advise;
use crate::mirror::{fill, load_list};
use crate::output::say;

/// Fills a folder from another mirror, or from the addresses of a pinned list.
pub(crate) async fn create(
    folder: &Path,
    from: Option<&MirrorSource>,
    digest: Option<Digest>,
    list: Option<&Path>,
) -> Result<()> {
    let list = match (list, from) {
        (Some(path), _) => parse_list(path).context("cannot read the list given with --list")?,
        (None, Some(from)) => {
            load_list(from, digest, HOW_TO_PIN)
                .await
                .context("cannot read the mirror given with --from")?
                .list
        }
        (None, None) => unreachable!("clap demands one of them"),
    };
    let created = std::fs::create_dir_all(folder).map_err(|error| explain_denied(folder, error));
    created.with_context(|| format!("cannot create {}", folder.display()))?;
    let progress = Progress::start();
    let title = format!("mirroring Kubernetes {}", list.kubernetes_version());
    let digest = progress
        .step(&title, async |step| fill(folder, &list, from, step).await)
        .await
        .advise("run the same command again to continue")?;
    say(&format!(
        "Mirror of Kubernetes {} in {}\nkubernetesComponentsDigest: {}",
        list.kubernetes_version(),
        folder.display(),
        oci::format(&digest)
    ));
    Ok(())
}

const HOW_TO_PIN: &str =
    "pass --digest with the digest that `sha256sum components.json` prints where the mirror was filled";

fn parse_list(path: &Path) -> Result<ComponentList> {
    let bytes = std::fs::read(path).map_err(|error| explain_denied(path, error));
    let bytes = bytes.with_context(|| format!("cannot read {}", path.display()))?;
    ComponentList::from_mirror_document(&bytes).with_context(|| format!("{} is not a component list", path.display()))
}
