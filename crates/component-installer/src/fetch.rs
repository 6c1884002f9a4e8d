use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use atomic_file::{Access, NewFile};
use backon::{ExponentialBuilder, Retryable};
use digest::{Digest, HashingWriter};
use error_report::Chain;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::timeout;
use tracing::info;

use crate::source::Location;

/// Longer components are refused, in bytes.
const MAX_LEN: u64 = 2 << 30;
/// Time for one attempt at one component. The largest have 150 MB.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10 * 60);
/// How long a server may send nothing.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
const ATTEMPTS: usize = 6;
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Official downloads redirect to where they are stored; the hash decides what is accepted.
const MAX_REDIRECTS: usize = 5;

/// A component could not be fetched, or is not the pinned one.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server cannot be reached, or the connection broke.
    #[error("cannot reach the server")]
    Unreachable(#[source] reqwest::Error),
    /// The server refused.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// The server was too slow.
    #[error("the server did not send the file within {0:?}")]
    TimedOut(Duration),
    /// Longer than any component.
    #[error("the file is longer than {0} bytes")]
    TooLong(u64),
    /// Not the file that was pinned.
    #[error("the file's hash is {actual}, expected {expected}")]
    Hash {
        /// The hash of the fetched file.
        actual: Digest,
        /// The pinned hash.
        expected: Digest,
    },
    /// The local disk failed.
    #[error("cannot read or write a local file")]
    File(#[from] io::Error),
}

impl FetchError {
    /// Whether the same request may succeed later.
    fn is_transient(&self) -> bool {
        match self {
            // RFC 9110 section 15: request timeout, too early, too many requests, and the errors of gateways.
            Self::Status(status) => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            Self::Unreachable(_) | Self::TimedOut(_) => true,
            Self::TooLong(_) | Self::Hash { .. } | Self::File(_) => false,
        }
    }
}

/// A client for public files that are pinned by their hash: it uses no proxy and follows few redirects.
pub(crate) fn client() -> Result<Client, FetchError> {
    client_with(Policy::limited(MAX_REDIRECTS))
}

/// A client for files that nothing vouches for: it contacts only the server it was given.
pub(crate) fn client_without_redirects() -> Result<Client, FetchError> {
    client_with(Policy::none())
}

fn client_with(redirects: Policy) -> Result<Client, FetchError> {
    Client::builder()
        .no_proxy()
        .redirect(redirects)
        .read_timeout(SILENCE_LIMIT)
        .build()
        .map_err(FetchError::Unreachable)
}

/// Fetches a component to `target`, which exists afterwards only if its content has the hash.
///
/// # Cancel safety
/// Dropping the future leaves no partial file.
pub(crate) async fn fetch(client: &Client, from: &Location, expected: Digest, target: &Path) -> Result<(), FetchError> {
    let attempt = || async {
        let work = fetch_once(client, from, expected, target);
        timeout(ATTEMPT_LIMIT, work)
            .await
            .map_err(|_| FetchError::TimedOut(ATTEMPT_LIMIT))?
    };
    let delays = ExponentialBuilder::default()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(LONGEST_DELAY)
        .with_max_times(ATTEMPTS - 1)
        .with_jitter();
    attempt
        .retry(delays)
        .when(FetchError::is_transient)
        .notify(|error, delay| info!(error = %Chain(error), ?delay, "fetch failed, trying again"))
        .await
}

async fn fetch_once(client: &Client, from: &Location, expected: Digest, target: &Path) -> Result<(), FetchError> {
    let mut file = HashedFile::create(target)?;
    match from {
        Location::Address(url) => download(client, url.clone(), &mut file).await?,
        Location::File(path) => file = copy_file(path.clone(), file).await?,
    }
    file.keep_if(expected)
}

async fn download(client: &Client, url: Url, file: &mut HashedFile) -> Result<(), FetchError> {
    let mut response = get(client, url).await?;
    while let Some(chunk) = response.chunk().await.map_err(FetchError::Unreachable)? {
        file.append(&chunk)?;
    }
    Ok(())
}

/// Fetches a short document whose content is not pinned.
pub(crate) async fn fetch_small(client: &Client, from: &Location, max_len: usize) -> Result<Vec<u8>, FetchError> {
    let mut document = Vec::new();
    match from {
        Location::Address(url) => {
            let mut response = get(client, url.clone()).await?;
            while let Some(chunk) = response.chunk().await.map_err(FetchError::Unreachable)? {
                document.extend_from_slice(&chunk);
                if document.len() > max_len {
                    break;
                }
            }
        }
        Location::File(path) => {
            let one_more = max_len as u64 + 1;
            File::open(path)?.take(one_more).read_to_end(&mut document)?;
        }
    }
    if document.len() > max_len {
        return Err(FetchError::TooLong(max_len as u64));
    }
    Ok(document)
}

async fn get(client: &Client, url: Url) -> Result<Response, FetchError> {
    let response = client.get(url).send().await.map_err(FetchError::Unreachable)?;
    match response.status() {
        StatusCode::OK => Ok(response),
        status => Err(FetchError::Status(status.as_u16())),
    }
}

async fn copy_file(from: std::path::PathBuf, mut file: HashedFile) -> Result<HashedFile, FetchError> {
    let copy = move || {
        let mut from = File::open(from)?.take(MAX_LEN + 1);
        io::copy(&mut from, &mut file.file)?;
        file.check_length()?;
        Ok(file)
    };
    tokio::task::spawn_blocking(copy).await.expect("copying does not panic")
}

/// A file that is hashed while it is written and does not have its final name yet.
struct HashedFile {
    file: HashingWriter<NewFile>,
}

impl HashedFile {
    fn create(target: &Path) -> io::Result<Self> {
        fs::create_dir_all(target.parent().expect("targets are files in a folder"))?;
        let file = HashingWriter::new(NewFile::create(target, Access::Everyone)?);
        Ok(Self { file })
    }

    /// Writes to the page cache, which is quick enough not to need another thread.
    fn append(&mut self, chunk: &[u8]) -> Result<(), FetchError> {
        self.file.write_all(chunk)?;
        self.check_length()
    }

    fn check_length(&self) -> Result<(), FetchError> {
        if self.file.len() > MAX_LEN {
            return Err(FetchError::TooLong(MAX_LEN));
        }
        Ok(())
    }

    fn keep_if(self, expected: Digest) -> Result<(), FetchError> {
        let (file, actual, _) = self.file.finish();
        if actual != expected {
            return Err(FetchError::Hash { actual, expected });
        }
        Ok(file.commit()?)
    }
}
