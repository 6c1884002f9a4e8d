//! Fetching what a mirror offers, before anything trusted has said what is wanted.

use download::DownloadError;
use kubernetes_components::{Component, ComponentList, MAX_DOCUMENT_LEN, MIRROR_DOCUMENT, ParseMirrorError};
use tracing::info;

use crate::fetch::{downloader_without_redirects, fetch_small};
use crate::{ComponentMirror, InstallError, Installer};

/// What a mirror offers cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PrefetchError {
    /// The mirror's list cannot be fetched.
    #[error("cannot fetch the mirror's list of components")]
    Fetch(#[from] DownloadError),
    /// The mirror's list is malformed.
    #[error("the mirror's list of components is unusable")]
    List(#[from] ParseMirrorError),
    /// A component cannot be fetched.
    #[error(transparent)]
    Component(#[from] InstallError),
}

impl Installer {
    /// Fetches those components of a mirror's own list that `needed` keeps, so that [`install`](Self::install) finds them.
    ///
    /// # Errors
    /// When something cannot be fetched; installing fetches it then.
    ///
    /// # Security
    /// Nothing vouches for the list. It causes no access to a file or address outside the mirror, and nothing in it is
    /// installed or unpacked. Later, only what a trusted list names by hash is installed, and everything else that was fetched is
    /// removed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves what was fetched so far.
    pub async fn prefetch(
        &self,
        mirror: &ComponentMirror,
        needed: impl FnOnce(&ComponentList) -> ComponentList,
    ) -> Result<(), PrefetchError> {
        let downloader = downloader_without_redirects()?;
        let document = fetch_small(&downloader, &mirror.document(MIRROR_DOCUMENT), MAX_DOCUMENT_LEN).await?;
        let list = needed(&ComponentList::from_mirror_document(&document)?);
        let in_mirror = list
            .components()
            .iter()
            .filter(|component| component.url.relative().is_some());
        let wanted: Vec<Component> = in_mirror.cloned().collect();
        self.make_staging()?;
        self.fetch_all(&downloader, &wanted, mirror).await?;
        info!(components = wanted.len(), "components fetched in advance");
        Ok(())
    }
}
