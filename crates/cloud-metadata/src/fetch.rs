use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use tokio::time::timeout;

use crate::ParseMetadataError;

/// Longer answers are refused (docs/interfaces.md).
pub(crate) const MAX_ANSWER_LEN: usize = 64 * 1024;
/// Slower answers are refused (docs/interfaces.md).
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(30);

/// The metadata service gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// It cannot be reached, or the connection broke.
    #[error("cannot reach the metadata service")]
    Unreachable(#[source] reqwest::Error),
    /// It took too long.
    #[error("the metadata service did not answer {request:?} within {TIME_LIMIT:?}")]
    TimedOut {
        /// The name of the request.
        request: &'static str,
    },
    /// It answered with an error, or with a redirect, which is not followed.
    #[error("the metadata service answered {request:?} with status {status}")]
    Status {
        /// The name of the request.
        request: &'static str,
        /// HTTP status code.
        status: u16,
    },
    /// It sent more than any answer needs.
    #[error("the metadata service's answer to {request:?} is longer than {MAX_ANSWER_LEN} bytes")]
    TooLong {
        /// The name of the request.
        request: &'static str,
    },
    /// It sent something malformed or impossible.
    #[error("the metadata service's answer to {request:?} is unusable")]
    Malformed {
        /// The name of the request.
        request: &'static str,
        /// What is wrong with the answer.
        #[source]
        source: ParseMetadataError,
    },
}

/// A client that contacts only the address it is given: no redirects, no proxies. It speaks plain HTTP, so it does not load the
/// system's certificates, which may be missing.
pub(crate) fn client() -> Client {
    Client::builder()
        .tls_certs_only([])
        .no_proxy()
        .redirect(Policy::none())
        .build()
        .expect("a client without certificates needs nothing of the system")
}

pub(crate) async fn fetch(client: &Client, url: Url, request: &'static str) -> Result<Vec<u8>, MetadataError> {
    timeout(TIME_LIMIT, fetch_bounded(client, url, request))
        .await
        .map_err(|_| MetadataError::TimedOut { request })?
}

async fn fetch_bounded(client: &Client, url: Url, request: &'static str) -> Result<Vec<u8>, MetadataError> {
    let mut response = client.get(url).send().await.map_err(MetadataError::Unreachable)?;
    if response.status() != StatusCode::OK {
        let status = response.status().as_u16();
        return Err(MetadataError::Status { request, status });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(MetadataError::Unreachable)? {
        if body.len() + chunk.len() > MAX_ANSWER_LEN {
            return Err(MetadataError::TooLong { request });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
