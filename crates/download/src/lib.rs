//! Downloads over HTTP: bounded in length and time, retried where that can help, and kept only with the right digest.
//!
//! Nothing here vouches for a server: callers know the digests of files, and check documents themselves.
//!
//! # Cancel safety
//! Dropping a future ends the download. The part that was downloaded stays beside the file, and the next download continues it.

mod copy;
mod error;
mod part;

use std::path::Path;
use std::time::Duration;

use cluster_types::is_loopback_host;
use digest::Digest;
use polling::{Failed, PollError, Schedule};
use reqwest::header::RANGE;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};

pub use copy::copy;
pub use error::DownloadError;
pub use part::part_of;
pub use reqwest::Url;

use crate::part::Part;

/// Fetches files over HTTP, directly or through the environment's proxies.
#[derive(Clone, Debug)]
pub struct Downloader {
    direct: Client,
    proxied: Option<Client>,
    limits: Limits,
}

/// The time limits of a download.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To open a connection.
    pub connect: Duration,
    /// How long a server may send nothing.
    pub stall: Duration,
    /// For one file or document, including all attempts.
    pub total: Duration,
}

/// Whether the environment's proxies are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxies {
    /// Every connection is direct.
    Ignored,
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` count, except for this machine's loopback, where a proxy
    /// would look at its own.
    FromEnvironment,
}

/// The progress of a download.
#[derive(Debug)]
pub enum Event<'a> {
    /// The number of bytes downloaded so far.
    Received(u64),
    /// An attempt failed; another one follows after this delay.
    Retrying(&'a DownloadError, Duration),
}

impl Downloader {
    /// Follows at most `redirects` redirects of each server.
    ///
    /// # Errors
    /// When the TLS configuration of this machine cannot be used.
    pub fn new(proxies: Proxies, redirects: usize, limits: Limits) -> Result<Self, DownloadError> {
        let policy = || match redirects {
            0 => Policy::none(),
            most => Policy::limited(most),
        };
        let client = || {
            Client::builder()
                .redirect(policy())
                .connect_timeout(limits.connect)
                .read_timeout(limits.stall)
        };
        let proxied = match proxies {
            Proxies::Ignored => None,
            Proxies::FromEnvironment => Some(client().build().map_err(DownloadError::Client)?),
        };
        Ok(Self {
            direct: client().no_proxy().build().map_err(DownloadError::Client)?,
            proxied,
            limits,
        })
    }

    /// Downloads a short document, which is not checked.
    ///
    /// # Errors
    /// When it is longer than `max_len` bytes or cannot be downloaded.
    pub async fn document(&self, url: &Url, max_len: usize) -> Result<Vec<u8>, DownloadError> {
        let attempt = || async {
            self.document_once(url, max_len)
                .await
                .map_err(DownloadError::into_failed)
        };
        schedule(self.limits.total.min(DOCUMENT_LIMIT))
            .at_most(DOCUMENT_ATTEMPTS)
            .poll(attempt, |_, _| {})
            .await
            .map_err(given_up)
    }

    /// Downloads a file of at most `max_len` bytes to `target`, which appears only with this digest. `progress` gets its events.
    ///
    /// 1. What an earlier download left of it is kept, and the rest is requested.
    /// 2. A broken connection is opened again, and the download continues where it stopped.
    /// 3. A file with another digest is removed. If its beginning was left by an earlier download, it is fetched once more.
    ///
    /// # Errors
    /// When the file cannot be downloaded, is too long, or has another digest.
    pub async fn file(
        &self,
        url: &Url,
        digest: Digest,
        max_len: u64,
        target: &Path,
        progress: &(dyn Fn(Event<'_>) + Send + Sync),
    ) -> Result<(), DownloadError> {
        let received = |len| progress(Event::Received(len));
        let attempt = || async {
            let file = self.file_once(url, digest, max_len, target, &received).await;
            file.map_err(DownloadError::into_failed)
        };
        schedule(self.limits.total)
            .at_most(FILE_ATTEMPTS)
            .poll(attempt, |error, delay| progress(Event::Retrying(error, delay)))
            .await
            .map_err(given_up)
    }

    async fn document_once(&self, url: &Url, max_len: usize) -> Result<Vec<u8>, DownloadError> {
        let mut response = self.get(url, 0).await?;
        if response.status() != StatusCode::OK {
            return Err(DownloadError::Status(response.status().as_u16()));
        }
        let mut document = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            document.extend_from_slice(chunk.as_ref());
            if document.len() > max_len {
                return Err(DownloadError::TooLong(max_len as u64));
            }
        }
        Ok(document)
    }

    async fn file_once(
        &self,
        url: &Url,
        digest: Digest,
        max_len: u64,
        target: &Path,
        received: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), DownloadError> {
        let mut part = Part::open(target).await?;
        let begun = part.len();
        let mut response = self.get(url, begun).await?;
        match response.status() {
            StatusCode::OK => part.clear()?,
            StatusCode::PARTIAL_CONTENT if begun > 0 => {}
            // All of it already existed, or the beginning is not this file's; the digest will tell.
            StatusCode::RANGE_NOT_SATISFIABLE if begun > 0 => return part.keep_as(target, digest),
            status => return Err(DownloadError::Status(status.as_u16())),
        }
        while let Some(chunk) = self.chunk(&mut response).await? {
            // Writes to the page cache, which is quick enough not to need another thread.
            part.append(chunk.as_ref())?;
            if part.len() > max_len {
                part.remove()?;
                return Err(DownloadError::TooLong(max_len));
            }
            received(part.len());
        }
        part.keep_as(target, digest)
    }

    async fn get(&self, url: &Url, from: u64) -> Result<Response, DownloadError> {
        let mut request = self.client(url).get(url.clone());
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        request.send().await.map_err(|error| self.network(error))
    }

    async fn chunk(&self, response: &mut Response) -> Result<Option<impl AsRef<[u8]> + use<>>, DownloadError> {
        response.chunk().await.map_err(|error| self.network(error))
    }

    fn client(&self, url: &Url) -> &Client {
        let local = url.host_str().is_some_and(is_loopback_host);
        self.proxied.as_ref().filter(|_| !local).unwrap_or(&self.direct)
    }

    fn network(&self, error: reqwest::Error) -> DownloadError {
        if error.is_timeout() && !error.is_connect() {
            DownloadError::Stalled(self.limits.stall)
        } else {
            // The address is the caller's to name, once.
            DownloadError::Unreachable(error.without_url())
        }
    }
}

fn schedule(limit: Duration) -> Schedule {
    Schedule::backing_off(FIRST_DELAY, LONGEST_DELAY, limit)
}

/// The reason of the last failure says more than that time is up.
fn given_up(error: PollError<DownloadError>) -> DownloadError {
    match error {
        PollError::Stopped(error) | PollError::TooOften(error) => error,
        PollError::TimedOut { last: Some(error), .. } => error,
        PollError::TimedOut { limit, last: None } => DownloadError::TooSlow(limit),
    }
}

impl DownloadError {
    fn into_failed(self) -> Failed<Self> {
        if self.is_transient() {
            Failed::Retry(self)
        } else {
            Failed::Stop(self)
        }
    }
}

impl Default for Limits {
    /// For files of some hundred megabytes.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            total: Duration::from_secs(30 * 60),
        }
    }
}

/// A document is short, and someone waits for it.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(60);
const DOCUMENT_ATTEMPTS: usize = 3;
const FILE_ATTEMPTS: usize = 6;
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
