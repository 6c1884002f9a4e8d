//! A mirror of Kubernetes that also has the image of the suite's test pods.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use digest::Digest;
use kubernetes_components::{Component, ComponentList, MIRROR_DOCUMENT};
use oci_archive::{Content, Image, Layer, write_archive};

/// The image of test pods.
pub const PROBE_IMAGE: &str = "localhost/probe:e2e";

/// Names the program of test pods; `make e2e` sets it.
const PROBE: &str = "CONSTELLATION_E2E_PROBE";
const PROBE_ARCHIVE: &str = "images/probe.oci.tar";

/// A mirror of this test's own. Files that no test changes are links to the original's.
pub struct TestMirror {
    folder: PathBuf,
}

impl TestMirror {
    /// A mirror with everything of the source, and the probe.
    pub(crate) fn with_probe(source: &Path, folder: &Path) -> Result<Self> {
        let list = fs::read(source.join(MIRROR_DOCUMENT)).with_context(|| format!("no mirror in {source:?}"))?;
        let list = ComponentList::from_mirror_document(&list)?;
        let mut components = list.components().to_vec();
        for component in &components {
            let path = component.url.relative().context("a mirror has relative paths")?;
            link(&source.join(path), &folder.join(path))?;
        }
        components.push(probe(folder)?);
        let list = ComponentList::new(list.kubernetes_version().clone(), components)?;
        fs::write(folder.join(MIRROR_DOCUMENT), list.to_mirror_document())?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Flips one bit of a file while `during` runs.
    ///
    /// # Errors
    /// When the file cannot be changed.
    pub fn with_a_flipped_bit<T>(&self, file: &str, during: impl FnOnce() -> T) -> Result<T> {
        let path = self.folder.join(file);
        let original = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut changed = original.clone();
        *changed.last_mut().context("the file is empty")? ^= 1;
        // Never the file that the original mirror shares.
        replace(&path, &changed)?;
        let result = during();
        replace(&path, &original)?;
        Ok(result)
    }
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::remove_file(path)?;
    Ok(fs::write(path, bytes)?)
}

fn link(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
    // Another file system has no links to this one.
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(())
}

fn probe(folder: &Path) -> Result<Component> {
    let program = env::var_os(PROBE).with_context(|| format!("{PROBE} is not set: use `make e2e`"))?;
    let mut layer = Layer::new();
    layer.file("/probe", 0o755, Content::HostFile(program.into()))?;
    let archive = folder.join(PROBE_ARCHIVE);
    write_archive(&Image::new(PROBE_IMAGE.parse()?, vec![layer], &["/probe"]), &archive)?;
    Ok(Component {
        url: PROBE_ARCHIVE.parse()?,
        hash: Digest::of_file(&archive)?,
        install_path: "/run/state/images/probe.oci.tar".parse()?,
        extract: false,
    })
}
