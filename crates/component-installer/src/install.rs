use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use digest::Digest;
use download::{DownloadError, Downloader};
use kubernetes_components::{Component, ComponentList};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tracing::info;

use crate::fetch::{downloader, fetch};
use crate::place::move_file;
use crate::source::{ComponentMirror, Location};
use crate::unpack::{UnpackError, unpack};

/// How many components are fetched at once. More would only make each of them slower.
const CONCURRENT_FETCHES: usize = 4;

/// Installs components onto one node.
#[derive(Clone, Debug)]
pub struct Installer {
    root: PathBuf,
    staging: PathBuf,
    /// Archives stay, so that a later boot can unpack them without a mirror.
    archives: PathBuf,
}

/// Components could not be installed. Only `Place` and `Unpack` mean that something was changed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A component cannot be fetched, or is not the pinned one.
    #[error("cannot fetch component {url}")]
    Fetch {
        /// The component's address, as listed.
        url: String,
        /// Why it could not be fetched, or how it differs from what is pinned.
        #[source]
        source: DownloadError,
    },
    /// A component's URL and the mirror do not make an address.
    #[error("component {0} has an unusable address")]
    Address(String),
    /// The folder for fetched files cannot be used.
    #[error("cannot use the folder for fetched components")]
    Staging(#[source] io::Error),
    /// A checked file could not be put in its place.
    #[error("cannot install {path}")]
    Place {
        /// Where on the node it belongs.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A checked archive could not be unpacked.
    #[error("cannot unpack the archive for {path}")]
    Unpack {
        /// Where on the node it belongs.
        path: String,
        /// Which entry could not be unpacked, and why.
        #[source]
        source: UnpackError,
    },
}

impl Installer {
    /// Will install below `root`, which is `/` on a node. `staging` keeps fetched files until then. It is a folder on the
    /// state disk, because programs and images together are larger than a node's memory.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, staging: impl Into<PathBuf>) -> Self {
        let staging = staging.into();
        Self {
            root: root.into(),
            archives: staging.with_extension("archives"),
            staging,
        }
    }

    /// Fetches all components, checks them, and only then installs them.
    ///
    /// 1. Whatever is there with the right hash is left alone.
    /// 2. The others are fetched side by side, and each must have its hash.
    /// 3. They are put in their places, one after the other. Archives are unpacked each time: nothing says what their files were.
    /// 4. Files that were fetched in advance and are not in the list are removed, and archives of other lists.
    ///
    /// # Errors
    /// When a component cannot be fetched, has the wrong hash, or cannot be put in its place.
    ///
    /// # Cancel safety
    /// Dropping the future keeps fetched files for the next attempt, and leaves installed files in place.
    pub async fn install(&self, list: &ComponentList, mirror: &ComponentMirror) -> Result<(), InstallError> {
        self.make_staging()?;
        let missing = self.missing(list).await;
        let count = missing.len();
        let downloader = downloader().map_err(|source| InstallError::Fetch {
            url: "(none)".into(),
            source,
        })?;
        self.fetch_all(&downloader, &missing, mirror).await?;
        let (installer, components) = (self.clone(), list.components().to_vec());
        let place = move || {
            missing.iter().try_for_each(|component| installer.place(component))?;
            let mut archives = components.iter().filter(|component| component.extract);
            archives.try_for_each(|component| installer.unpack(component))
        };
        spawn_blocking(place).await.expect("installing does not panic")?;
        fs::remove_dir_all(&self.staging).map_err(InstallError::Staging)?;
        keep_only(&self.archives, list).map_err(InstallError::Staging)?;
        info!(
            installed = count,
            present = list.components().len() - count,
            "components installed"
        );
        Ok(())
    }

    /// Removes the unfinished files of attempts that ended without warning.
    pub(crate) fn make_staging(&self) -> Result<(), InstallError> {
        let clean = || {
            fs::create_dir_all(&self.staging)?;
            for entry in fs::read_dir(&self.staging)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with('.') {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        clean().map_err(InstallError::Staging)
    }

    /// Removes what was fetched in advance but is not in the list: a mirror may have filled the disk with it.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn keep_only(&self, list: &ComponentList) -> io::Result<()> {
        keep_only(&self.staging, list)
    }

    async fn missing(&self, list: &ComponentList) -> Vec<Component> {
        let installer = self.clone();
        let components = list.components().to_vec();
        let is_missing = move |component: &Component| {
            !Digest::of_file(installer.stored(component)).is_ok_and(|hash| hash == component.hash)
        };
        spawn_blocking(move || components.into_iter().filter(is_missing).collect())
            .await
            .expect("hashing does not panic")
    }

    pub(crate) async fn fetch_all(
        &self,
        downloader: &Downloader,
        components: &[Component],
        mirror: &ComponentMirror,
    ) -> Result<(), InstallError> {
        let slots = Arc::new(Semaphore::new(CONCURRENT_FETCHES));
        // When one fetch fails, dropping the set ends the others.
        let mut fetches = JoinSet::new();
        for component in components {
            let location = mirror
                .locate(&component.url)
                .ok_or_else(|| InstallError::Address(component.url.to_string()))?;
            let staged = self.staged(component);
            fetches.spawn(fetch_one(
                downloader.clone(),
                slots.clone(),
                component.clone(),
                location,
                staged,
            ));
        }
        while let Some(fetched) = fetches.join_next().await {
            fetched.expect("fetching does not panic")?;
        }
        Ok(())
    }

    fn place(&self, component: &Component) -> Result<(), InstallError> {
        let moved = move_file(&self.staged(component), &self.stored(component));
        moved.map_err(|source| InstallError::Place {
            path: component.install_path.to_string(),
            source,
        })
    }

    fn unpack(&self, component: &Component) -> Result<(), InstallError> {
        let unpacked = unpack(&self.stored(component), &self.target(component));
        unpacked.map_err(|source| InstallError::Unpack {
            path: component.install_path.to_string(),
            source,
        })
    }

    /// Where the checked file stays: a program or an image in its place, an archive beside the fetched files.
    fn stored(&self, component: &Component) -> PathBuf {
        if component.extract {
            self.archives.join(file_name(component))
        } else {
            self.target(component)
        }
    }

    fn staged(&self, component: &Component) -> PathBuf {
        self.staging.join(file_name(component))
    }

    fn target(&self, component: &Component) -> PathBuf {
        self.root.join(component.install_path.as_str().trim_start_matches('/'))
    }
}

fn keep_only(folder: &Path, list: &ComponentList) -> io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let wanted: BTreeSet<PathBuf> = list.components().iter().map(file_name).map(PathBuf::from).collect();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !wanted.contains(Path::new(&entry.file_name())) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// By hash and destination; the same file for two destinations is fetched twice.
fn file_name(component: &Component) -> String {
    let place = component.install_path.as_str().replace('/', "_");
    format!("{}{place}", component.hash)
}

async fn fetch_one(
    downloader: Downloader,
    slots: Arc<Semaphore>,
    component: Component,
    location: Location,
    staged: PathBuf,
) -> Result<(), InstallError> {
    let _slot = slots.acquire_owned().await.expect("the semaphore is never closed");
    if is_staged(&staged, &component).await {
        return Ok(());
    }
    fetch(&downloader, &location, component.hash, &staged)
        .await
        .map_err(|source| InstallError::Fetch {
            url: component.url.to_string(),
            source,
        })
}

/// Only complete files with the right hash get their name, but a crash can lose what the disk had not written yet.
async fn is_staged(path: &Path, component: &Component) -> bool {
    let (path, expected) = (path.to_owned(), component.hash);
    spawn_blocking(move || Digest::of_file(&path).is_ok_and(|hash| hash == expected))
        .await
        .expect("hashing does not panic")
}
