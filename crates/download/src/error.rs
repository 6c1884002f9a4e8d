use std::io;
use std::time::Duration;

use digest::{Digest, oci};

/// A file or document that was not downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// TLS cannot be set up.
    #[error("cannot set up an HTTP client")]
    Client(#[source] reqwest::Error),
    /// There is no connection, or it broke.
    #[error("cannot reach the server")]
    Unreachable(#[source] reqwest::Error),
    /// The server refused.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// The server accepted the connection and then sent nothing.
    #[error("the server sent nothing for {} s", .0.as_secs_f64())]
    Stalled(Duration),
    /// The server sends, but not fast enough.
    #[error("the download did not finish within {} s", .0.as_secs_f64())]
    TooSlow(Duration),
    /// The file is longer than the caller accepts.
    #[error("the file is longer than {0} bytes")]
    TooLong(u64),
    /// Not the file that was wanted.
    #[error(
        "the file has the digest {}, expected {}",
        oci::format(actual),
        oci::format(expected)
    )]
    Digest {
        /// The file's digest.
        actual: Digest,
        /// The digest of the file that was wanted.
        expected: Digest,
        /// Whether an earlier download had fetched its beginning.
        resumed: bool,
    },
    /// The local disk failed.
    #[error("cannot read or write a local file")]
    File(#[from] io::Error),
}

impl DownloadError {
    /// Whether the same request may succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            // RFC 9110 section 15: request timeout, too early, too many requests, and what gateways say.
            Self::Status(status) => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            Self::Unreachable(_) | Self::Stalled(_) => true,
            // The beginning may be another file's; the next attempt fetches all of it.
            Self::Digest { resumed, .. } => *resumed,
            Self::Client(_) | Self::TooSlow(_) | Self::TooLong(_) | Self::File(_) => false,
        }
    }
}
