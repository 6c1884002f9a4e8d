//! Mirrors of Kubernetes: reading their list, and filling one from another.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError, symlink_metadata};
use std::io::{ErrorKind, Read};
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
/// What the files of a workspace start with, whose secrets no list may name: a mirror can be in a workspace.
const WORKSPACE_PREFIX: &str = "constellation-";

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
    check_places(&list).with_context(|| format!("{place} cannot be used"))?;
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

/// A file that a mirror is to have.
struct Wanted<'list> {
    component: &'list Component,
    /// Its path below the mirror's root.
    place: String,
}

/// Fills a folder with every file of a list and returns the digest of the list there.
///
/// 1. Another run does not fill the folder at the same time.
/// 2. A list or file that is there and differs from what is wanted is refused, before anything is fetched: it is the user's, or of
///    another release, which a cluster may be using.
/// 3. What is missing is fetched, or continued where an earlier run stopped.
/// 4. The list comes last, so a folder with a list is complete.
pub(crate) async fn fill(
    folder: &Path,
    list: &ComponentList,
    from: Option<&MirrorSource>,
    step: &Step<'_>,
) -> Result<Digest> {
    check_places(list)?;
    let _lock = lock(folder)?;
    let mut wanted = wanted(list)?;
    let mirrored = mirrored(list, &wanted)?;
    let there = existing_list(folder, &mirrored)?;
    keep_missing(folder, &mut wanted)?;
    fetch(folder, &wanted, from, step).await?;
    match there {
        Some(digest) => Ok(digest),
        None => write_list(folder, &mirrored),
    }
}

/// A list from elsewhere may name any path. These are not for mirrors.
fn check_places(list: &ComponentList) -> Result<()> {
    let paths = list
        .components()
        .iter()
        .filter_map(|component| component.url.relative());
    for path in paths {
        if path == MIRROR_DOCUMENT || path.split('/').any(|part| part.starts_with(WORKSPACE_PREFIX)) {
            return Err(anyhow!("the list names {path}, which is not a file of a mirror")).advise("use another list");
        }
    }
    Ok(())
}

/// Held until the file is closed. Two runs at once could leave the list of one with the files of the other.
fn lock(folder: &Path) -> Result<File> {
    let file = File::open(folder).map_err(|error| explain_denied(folder, error));
    let file = file.with_context(|| format!("cannot read {}", folder.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(anyhow!("another `mirror create` fills {}", folder.display())).advise("wait until it has ended")
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", folder.display())),
    }
}

fn wanted(list: &ComponentList) -> Result<Vec<Wanted<'_>>> {
    let mut hashes = BTreeMap::new();
    let mut wanted = Vec::new();
    for component in list.components() {
        let place = place(component)?;
        if *hashes.entry(place.clone()).or_insert(component.hash) != component.hash {
            bail!("the list names two different files {place}");
        }
        wanted.push(Wanted { component, place });
    }
    Ok(wanted)
}

/// The same list, with the paths in the new mirror.
fn mirrored(list: &ComponentList, wanted: &[Wanted<'_>]) -> Result<ComponentList> {
    let mut components = Vec::new();
    for Wanted { component, place } in wanted {
        components.push(Component {
            url: place.parse()?,
            ..(*component).clone()
        });
    }
    Ok(ComponentList::new(list.kubernetes_version().clone(), components)?)
}

/// The digest of the list that the folder has already, if any.
fn existing_list(folder: &Path, mirrored: &ComponentList) -> Result<Option<Digest>> {
    let path = folder.join(MIRROR_DOCUMENT);
    if !is_file(&path)? {
        return Ok(None);
    }
    let document = read_document(&path)?;
    match ComponentList::from_mirror_document(&document) {
        Ok(list) if list == *mirrored => Ok(Some(Digest::of(&document))),
        _ => in_the_way(&path, "is not the list of this mirror"),
    }
}

/// Leaves the files that are not in the folder yet.
fn keep_missing(folder: &Path, wanted: &mut Vec<Wanted<'_>>) -> Result<()> {
    let mut missing = Vec::new();
    for file in wanted.drain(..) {
        if !is_there(&folder.join(&file.place), file.component.hash)? {
            missing.push(file);
        }
    }
    *wanted = missing;
    Ok(())
}

fn is_there(path: &Path, expected: Digest) -> Result<bool> {
    if !is_file(path)? {
        return Ok(false);
    }
    let digest = Digest::of_file(path).map_err(|error| explain_denied(path, error));
    let digest = digest.with_context(|| format!("cannot read {}", path.display()))?;
    if digest == expected {
        return Ok(true);
    }
    let [digest, expected] = [digest, expected].map(|digest| oci::format(&digest));
    in_the_way(path, &format!("has the digest {digest}, expected {expected}"))
}

/// Whether there is a file, and not just nothing.
fn is_file(path: &Path) -> Result<bool> {
    match symlink_metadata(path) {
        Ok(_) if path.is_file() => Ok(true),
        Ok(_) => in_the_way(path, "is not a file"),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(explain_denied(path, error)).with_context(|| format!("cannot look at {}", path.display())),
    }
}

fn in_the_way<T>(path: &Path, why: &str) -> Result<T> {
    Err(anyhow!("{} exists and {why}", path.display()))
        .advise("fill another folder: `mirror create` replaces neither your files nor those of another release")
}

async fn fetch(folder: &Path, missing: &[Wanted<'_>], from: Option<&MirrorSource>, step: &Step<'_>) -> Result<()> {
    let downloader = downloader()?;
    for (index, Wanted { component, place }) in missing.iter().enumerate() {
        let title = format!("{} of {}: {place}", index + 1, missing.len());
        step.detail(&title);
        let path = folder.join(place);
        // An earlier component can be the same file.
        if !path.exists() {
            fetch_component(&downloader, component, &path, from, &|event| show(step, &title, &event))
                .await
                .with_context(|| format!("cannot mirror {}", component.url))?;
        }
    }
    Ok(())
}

fn write_list(folder: &Path, mirrored: &ComponentList) -> Result<Digest> {
    let (path, document) = (folder.join(MIRROR_DOCUMENT), mirrored.to_mirror_document());
    atomic_file::replace(&path, &document, Access::Everyone)
        .map_err(|error| explain_denied(&path, error))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Digest::of(&document))
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
