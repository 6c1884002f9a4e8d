//! Mirrors of Kubernetes: reading their list, and filling one from another.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use atomic_file::Access;
use cluster_config::MirrorSource;
use digest::{Digest, oci};
use download::{Downloader, Event, Limits, Proxies, Url, copy};
use error_report::{Chain, explain_denied};
use kubernetes_components::{Component, ComponentList, MAX_DOCUMENT_LEN, MIRROR_DOCUMENT};
use terminal::Step;

use crate::advice::Advise;

/// Larger components are refused, in bytes.
const MAX_FILE_LEN: u64 = 4 << 30;
/// Official downloads are redirected to where they are stored; the digest decides what is taken.
const MAX_REDIRECTS: usize = 5;
/// How often the progress of a download is shown, in MiB.
const SHOW_EVERY_MIB: u64 = 32;

/// What a mirror holds.
pub(crate) struct Offer {
    pub(crate) list: ComponentList,
    /// The digest of the list's document.
    pub(crate) digest: Digest,
}

/// The list at the root of a mirror. One from the network is fetched only if it is pinned (`how_to_pin` says how to do
/// that), and one that is pinned is read only if it is the right one.
pub(crate) async fn load_list(source: &MirrorSource, pinned: Option<Digest>, how_to_pin: &str) -> Result<Offer> {
    let (document, place) = match (source, pinned) {
        (MirrorSource::Folder(folder), _) => {
            let path = folder.join(MIRROR_DOCUMENT);
            (read_document(&path)?, path.display().to_string())
        }
        (MirrorSource::Http(_), None) => {
            return Err(anyhow!(
                "{source} is reached over the network, but the digest of its component list is unknown"
            ))
            .advise(how_to_pin);
        }
        (MirrorSource::Http(base), Some(_)) => {
            let url = base.join(MIRROR_DOCUMENT)?;
            let document = downloader()?.document(&url, MAX_DOCUMENT_LEN).await;
            (
                document.with_context(|| format!("cannot fetch {url}"))?,
                url.to_string(),
            )
        }
    };
    let digest = Digest::of(&document);
    if let Some(expected) = pinned.filter(|expected| *expected != digest) {
        let [digest, expected] = [digest, expected].map(|digest| oci::format(&digest));
        return Err(anyhow!("{place} has the digest {digest}, expected {expected}")).advise(format!(
            "use the mirror that the expected digest was taken from; if the mirror was refilled on purpose, {how_to_pin}"
        ));
    }
    let list = ComponentList::from_mirror_document(&document)
        .with_context(|| format!("{place} is not a list of components"))?;
    Ok(Offer { list, digest })
}

fn read_document(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|error| explain_denied(path, error));
    let file = file.with_context(|| format!("cannot read {}", path.display()))?;
    let mut document = Vec::new();
    file.take(MAX_DOCUMENT_LEN as u64 + 1).read_to_end(&mut document)?;
    Ok(document)
}

fn downloader() -> Result<Downloader> {
    Ok(Downloader::new(
        Proxies::FromEnvironment,
        MAX_REDIRECTS,
        Limits::default(),
    )?)
}

/// Fills a folder with every file of a list, then writes the list and returns its digest. Existing files with the right digest
/// are kept. The list comes last, so a folder with a list is complete.
pub(crate) async fn fill(
    folder: &Path,
    list: &ComponentList,
    from: Option<&MirrorSource>,
    step: &Step<'_>,
) -> Result<Digest> {
    let downloader = downloader()?;
    let count = list.components().len();
    let mut components = Vec::new();
    for (index, component) in list.components().iter().enumerate() {
        let place = place(component)?;
        let title = format!("{} of {count}: {place}", index + 1);
        step.detail(&title);
        let path = folder.join(&place);
        fetch_component(&downloader, component, &path, from, &|event| show(step, &title, &event))
            .await
            .with_context(|| format!("cannot mirror {}", component.url))?;
        components.push(Component {
            url: place.parse()?,
            ..component.clone()
        });
    }
    let mirrored = ComponentList::new(list.kubernetes_version().clone(), components)?.to_mirror_document();
    let document = folder.join(MIRROR_DOCUMENT);
    atomic_file::replace(&document, &mirrored, Access::Everyone)
        .map_err(|error| explain_denied(&document, error))
        .with_context(|| format!("cannot write {}", document.display()))?;
    Ok(Digest::of(&mirrored))
}

fn show(step: &Step<'_>, title: &str, event: &Event<'_>) {
    match event {
        Event::Received(len) => {
            let mib = len / (1 << 20) / SHOW_EVERY_MIB * SHOW_EVERY_MIB;
            if mib > 0 {
                step.detail(&format!("{title}, {mib} MiB"));
            }
        }
        Event::Retrying(error, _) => step.detail(&format!("{title}, trying again: {}", Chain(*error))),
    }
}

/// Where a component is stored: at its path in the source mirror, or under a name made of its hash and its own address.
fn place(component: &Component) -> Result<String> {
    if let Some(path) = component.url.relative() {
        return Ok(path.to_owned());
    }
    let url = component.url.as_str();
    let name: String = url
        .rsplit('/')
        .find(|part| !part.is_empty())
        .context("the address does not end in a file name")?
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
        .collect();
    let hash = &component.hash.to_string()[..16];
    Ok(format!("files/{hash}-{name}"))
}

async fn fetch_component(
    downloader: &Downloader,
    component: &Component,
    path: &Path,
    from: Option<&MirrorSource>,
    progress: &(dyn Fn(Event<'_>) + Send + Sync),
) -> Result<()> {
    if path.is_file() {
        let digest = Digest::of_file(path).map_err(|error| explain_denied(path, error));
        let digest = digest.with_context(|| format!("cannot read {}", path.display()))?;
        if digest == component.hash {
            return Ok(());
        }
    }
    let url = match (component.url.relative(), from) {
        (None, _) => Url::parse(component.url.as_str())?,
        (Some(relative), Some(MirrorSource::Http(base))) => base.join(relative)?,
        (Some(relative), Some(MirrorSource::Folder(folder))) => {
            return Ok(copy(folder.join(relative), component.hash, MAX_FILE_LEN, path.to_owned()).await?);
        }
        (Some(relative), None) => bail!("{relative} is a path inside a mirror; pass that mirror with --from"),
    };
    Ok(downloader
        .file(&url, component.hash, MAX_FILE_LEN, path, progress)
        .await?)
}
