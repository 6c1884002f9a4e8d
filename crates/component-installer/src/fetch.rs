use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use digest::Digest;
use download::{DownloadError, Downloader, Event, Limits, Proxies, copy};
use error_report::Chain;
use tracing::info;

use crate::source::Location;

/// No component is longer, in bytes.
const MAX_LEN: u64 = 2 << 30;
/// Official downloads are redirected to where they are stored; the digest decides what is taken.
const MAX_REDIRECTS: usize = 5;

/// Downloads public files that are pinned by their digest.
pub(crate) fn downloader() -> Result<Downloader, DownloadError> {
    Downloader::new(Proxies::Ignored, MAX_REDIRECTS, Limits::default())
}

/// Downloads files that nobody vouches for: it asks nobody but the server it was told.
pub(crate) fn downloader_without_redirects() -> Result<Downloader, DownloadError> {
    Downloader::new(Proxies::Ignored, 0, Limits::default())
}

/// Brings a component to `target`, which exists only if its content has the digest.
pub(crate) async fn fetch(
    downloader: &Downloader,
    from: &Location,
    expected: Digest,
    target: &Path,
) -> Result<(), DownloadError> {
    let log = |event: Event<'_>| {
        if let Event::Retrying(error, delay) = event {
            info!(error = %Chain(error), ?delay, "fetching again");
        }
    };
    match from {
        Location::Address(url) => downloader.file(url, expected, MAX_LEN, target, &log).await,
        Location::File(path) => copy(path.clone(), expected, MAX_LEN, target.to_owned()).await,
    }
}

/// A short document, whose content is not pinned.
pub(crate) async fn fetch_small(
    downloader: &Downloader,
    from: &Location,
    max_len: usize,
) -> Result<Vec<u8>, DownloadError> {
    match from {
        Location::Address(url) => downloader.document(url, max_len).await,
        Location::File(path) => read_small(path, max_len),
    }
}

fn read_small(path: &Path, max_len: usize) -> Result<Vec<u8>, DownloadError> {
    let mut document = Vec::new();
    let read = |document: &mut Vec<u8>| -> io::Result<usize> {
        File::open(path)?.take(max_len as u64 + 1).read_to_end(document)
    };
    let len = read(&mut document).map_err(|source| DownloadError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    if len > max_len {
        return Err(DownloadError::TooLong(max_len as u64));
    }
    Ok(document)
}
