use std::fmt;
use std::io;
use std::path::PathBuf;

use document::DocumentError;
use error_report::{User, explain_denied};

use crate::problem::PreflightProblem;

/// The machines could not be created or removed.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// This machine lacks something.
    #[error("this machine is not ready for a local cluster:{}", List(.0))]
    Preflight(Vec<PreflightProblem>),
    /// A file or folder cannot be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The folder of the machines was not created by this program.
    #[error("{0} was not created by this program, because it has no cluster.json; move it away")]
    Foreign(PathBuf),
    /// The machines run in the workspace of which this one is a copy.
    #[error(
        "{} looks like a copy of {}, where its machines run, so nothing was done; use the original, and delete the copy by hand if you \
         do not need it",
        .workspace.display(), .original.display()
    )]
    Copy {
        /// The workspace of this command.
        workspace: PathBuf,
        /// The workspace that the machines belong to.
        original: PathBuf,
    },
    /// The record of the machines is damaged.
    #[error("cannot read {path}; `constellation terminate` removes it and the machines")]
    Record {
        /// Path of the file or folder.
        path: PathBuf,
        /// Where the JSON is wrong.
        #[source]
        source: DocumentError,
    },
    /// A program ended right after it was started.
    #[error("{program} exited at once: {said}")]
    Ended {
        /// Name of the program.
        program: String,
        /// The last line of its output.
        said: String,
    },
    /// A program did not become ready.
    #[error("{program} was not ready within {seconds} s")]
    NotReady {
        /// Name of the program.
        program: String,
        /// How long it was given.
        seconds: u64,
    },
    /// A process does not end.
    #[error("process {0} is still running after SIGKILL; wait, then run the same command again")]
    DoesNotEnd(i32),
    /// A process belongs to another user.
    #[error("process {pid} ({program}) belongs to {owner}: {}", .owner.advice())]
    NotPermitted {
        /// The id of the process.
        pid: i32,
        /// What it runs.
        program: String,
        /// The user whose process it is.
        owner: User,
    },
    /// KVM is required and does not work.
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
