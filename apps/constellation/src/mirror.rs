//! Mirrors of Kubernetes: reading their list, and filling one from another.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use atomic_file::Access;
use cluster_config::MirrorSource;
use digest::{Digest, oci};
use kubernetes_components::{Component, ComponentList, MAX_DOCUMENT_LEN, MIRROR_DOCUMENT};
use reqwest::header::RANGE;
use reqwest::{Client, Response, StatusCode};

use crate::progress::Step;

/// No component is larger.
const MAX_FILE_LEN: u64 = 4 << 30;

/// The list at the root of a mirror.
pub(crate) async fn load_list(source: &MirrorSource) -> Result<ComponentList> {
    let (bytes, place) = match source {
        MirrorSource::Folder(folder) => {
            let path = folder.join(MIRROR_DOCUMENT);
            let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let mut bytes = Vec::new();
            file.take(MAX_DOCUMENT_LEN as u64 + 1).read_to_end(&mut bytes)?;
            (bytes, path.display().to_string())
        }
        MirrorSource::Http(base) => {
            let url = format!("{base}/{MIRROR_DOCUMENT}");
            (fetch_small(&url).await?, url)
        }
    };
    ComponentList::from_mirror_document(&bytes).with_context(|| format!("{place} is no list of components"))
}

/// Fills a folder with every file of a list, then writes the list. Files that are there and right are kept; the list
/// comes last, so a folder with a list is complete.
pub(crate) async fn fill(
    folder: &Path,
    list: &ComponentList,
    from: Option<&MirrorSource>,
    step: &Step<'_>,
) -> Result<()> {
    let client = Client::new();
    let count = list.components().len();
    let mut components = Vec::new();
    for (index, component) in list.components().iter().enumerate() {
        let place = place(component)?;
        step.detail(&format!("{} of {count}: {place}", index + 1));
        let path = folder.join(&place);
        fetch_component(&client, component, &path, from)
            .await
            .with_context(|| format!("cannot mirror {}", component.url))?;
        components.push(Component {
            url: place.parse()?,
            ..component.clone()
        });
    }
    let mirrored = ComponentList::new(list.kubernetes_version().clone(), components)?;
    let document = folder.join(MIRROR_DOCUMENT);
    atomic_file::replace(&document, &mirrored.to_mirror_document(), Access::Everyone)
        .with_context(|| format!("cannot write {}", document.display()))
}

/// Where a component is kept: where it was, or for one with an address of its own a name made of hash and address.
fn place(component: &Component) -> Result<String> {
    if let Some(path) = component.url.relative() {
        return Ok(path.to_owned());
    }
    let url = component.url.as_str();
    let name: String = url
        .rsplit('/')
        .find(|part| !part.is_empty())
        .context("the address has no last part")?
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
        .collect();
    let hash = &component.hash.to_string()[..16];
    Ok(format!("files/{hash}-{name}"))
}

async fn fetch_component(
    client: &Client,
    component: &Component,
    path: &Path,
    from: Option<&MirrorSource>,
) -> Result<()> {
    if path.is_file() && digest_of(path)? == component.hash {
        return Ok(());
    }
    let parent = path.parent().context("a component has a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let partial = partial(path);
    match (component.url.relative(), from) {
        (None, _) => download(client, component.url.as_str(), &partial).await?,
        (Some(relative), Some(MirrorSource::Http(base))) => {
            download(client, &format!("{base}/{relative}"), &partial).await?;
        }
        (Some(relative), Some(MirrorSource::Folder(folder))) => copy(&folder.join(relative), &partial)?,
        (Some(relative), None) => bail!("{relative} is a path inside a mirror, and no mirror is given with --from"),
    }
    let actual = digest_of(&partial)?;
    if actual != component.hash {
        fs::remove_file(&partial)?;
        let [actual, expected] = [actual, component.hash].map(|hash| oci::format(&hash));
        bail!("the file has the hash {actual}, expected {expected}");
    }
    atomic_file::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {}", from.display()))
}

/// Downloads the rest of a file whose beginning may be there.
async fn download(client: &Client, url: &str, partial: &Path) -> Result<()> {
    let have = fs::metadata(partial).map_or(0, |metadata| metadata.len());
    let mut request = client.get(url);
    if have > 0 {
        request = request.header(RANGE, format!("bytes={have}-"));
    }
    let response = request.send().await?;
    let (response, append) = match response.status() {
        StatusCode::PARTIAL_CONTENT => (response, true),
        // Everything was there already, or the beginning is not of this file: the hash will tell.
        StatusCode::RANGE_NOT_SATISFIABLE => return Ok(()),
        _ => (response.error_for_status()?, false),
    };
    let mut options = OpenOptions::new();
    options.create(true).append(append).write(true).truncate(!append);
    write_body(response, options.open(partial)?).await
}

async fn write_body(mut response: Response, mut file: File) -> Result<()> {
    let mut written: u64 = file.metadata()?.len();
    while let Some(chunk) = response.chunk().await? {
        written += chunk.len() as u64;
        if written > MAX_FILE_LEN {
            bail!("the file is longer than {MAX_FILE_LEN} bytes");
        }
        file.write_all(&chunk)?;
    }
    Ok(())
}

async fn fetch_small(url: &str) -> Result<Vec<u8>> {
    let mut response = reqwest::get(url).await?.error_for_status()?;
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_DOCUMENT_LEN {
            bail!("{url} has more than {MAX_DOCUMENT_LEN} bytes");
        }
    }
    Ok(bytes)
}

fn digest_of(path: &Path) -> Result<Digest> {
    Digest::of_file(path).with_context(|| format!("cannot read {}", path.display()))
}
