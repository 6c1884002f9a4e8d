//! Fetching what a mirror offers before anybody trusted said what is wanted.

use kubernetes_components::{Component, ComponentList, MAX_DOCUMENT_LEN, MIRROR_DOCUMENT, ParseMirrorError};
use tracing::info;

use crate::fetch::{FetchError, client_without_redirects, fetch_small};
use crate::{InstallError, Installer, Mirror};

/// What a mirror offers cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PrefetchError {
    /// Its list cannot be fetched.
    #[error("the mirror's list of components cannot be fetched")]
    Fetch(#[from] FetchError),
    /// Its list is none.
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
    /// Nobody vouches for the list: no file and no address outside of the mirror is looked at for it, and nothing of it is
    /// installed or unpacked. What is installed later is what a trusted list names by hash; anything else that was fetched is
    /// removed then.
    ///
    /// # Cancel safety
    /// Dropping the future leaves what was fetched so far.
    pub async fn prefetch(
        &self,
        mirror: &Mirror,
        needed: impl FnOnce(&ComponentList) -> ComponentList,
    ) -> Result<(), PrefetchError> {
        let client = client_without_redirects()?;
        let document = fetch_small(&client, &mirror.document(MIRROR_DOCUMENT), MAX_DOCUMENT_LEN).await?;
        let list = needed(&ComponentList::from_mirror_document(&document)?);
        let in_mirror = list
            .components()
            .iter()
            .filter(|component| component.url.relative().is_some());
        let wanted: Vec<Component> = in_mirror.cloned().collect();
        self.make_staging()?;
        self.fetch_all(&client, &wanted, mirror).await?;
        info!(components = wanted.len(), "components fetched in advance");
        Ok(())
    }
}
