use std::fmt;
use std::io;
use std::path::PathBuf;

use error_report::{User, explain_denied};

use crate::problem::PreflightProblem;

/// The machines could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// This machine lacks something.
    #[error("this machine is not ready for a local cluster:{}", List(.0))]
    Preflight(Vec<PreflightProblem>),
    /// A file or folder cannot be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else made the folder of the machines.
    #[error("{0} was not made by this program: it holds no cluster.json; move it away")]
    Foreign(PathBuf),
    /// The record of the machines is damaged.
    #[error("{path} cannot be read; `constellation terminate` removes it and the machines")]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A program ended right after it was started.
    #[error("{program} ended at once: {said}")]
    Ended {
        /// Which.
        program: String,
        /// The last it said.
        said: String,
    },
    /// A program does not do what it was started for.
    #[error("{program} was not ready within {seconds} s")]
    NotReady {
        /// Which.
        program: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A process does not end.
    #[error("process {0} does not end")]
    DoesNotEnd(i32),
    /// A process belongs to somebody else.
    #[error("process {pid} ({program}) belongs to {owner}: {}", .owner.advice())]
    NotPermitted {
        /// Its id.
        pid: i32,
        /// What it runs.
        program: String,
        /// Whose it is.
        owner: User,
    },
    /// KVM is demanded and does not work.
    #[error("acceleration kvm is configured, but KVM does not work: {0}")]
    Kvm(String),
}

struct List<'a>(&'a [PreflightProblem]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// Names the path in the error.
pub(crate) trait Context<T> {
    fn on(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, QemuError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn on(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, QemuError> {
        self.map_err(|source| {
            let path = path.into();
            QemuError::Io {
                action,
                source: explain_denied(&path, source.into()),
                path,
            }
        })
    }
}
