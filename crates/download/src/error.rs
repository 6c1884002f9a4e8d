use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use digest::{Digest, oci};
use error_report::explain_denied;

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
    /// Another process, or another task of this one, downloads the same file.
    #[error("another download is writing to {0}; wait for it to finish, then try again")]
    Busy(PathBuf),
    /// The local disk failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Names the path in the error.
pub(crate) trait Context<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, DownloadError>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, DownloadError> {
        self.map_err(|error| DownloadError::File {
            action,
            path: path.to_owned(),
            source: explain_denied(path, error),
        })
    }
}

impl DownloadError {
    /// Whether the same request may succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            // RFC 9110 section 15: request timeout, too early, too many requests, and what gateways say.
            Self::Status(status) => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            // A download that was given up holds its part for a moment.
            Self::Unreachable(_) | Self::Stalled(_) | Self::Busy(_) => true,
            // The beginning may be another file's; the next attempt fetches all of it.
            Self::Digest { resumed, .. } => *resumed,
            Self::Client(_) | Self::TooSlow(_) | Self::TooLong(_) | Self::File { .. } => false,
        }
    }
}
