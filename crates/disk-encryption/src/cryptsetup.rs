//! Running the `cryptsetup` program.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Runs cryptsetup with a secret on its standard input.
///
/// The one place where keys leave this process; they go through a pipe and are never an argument, an environment variable
/// or a file.
pub trait Cryptsetup {
    /// Runs one command to its end. `input` becomes its standard input.
    ///
    /// # Errors
    /// When the program cannot be run or reports a failure.
    fn run(&self, arguments: &[&str], input: &[u8]) -> Result<(), CryptsetupError>;
}

/// Why a cryptsetup command failed.
#[derive(Debug, thiserror::Error)]
pub enum CryptsetupError {
    /// It could not be started.
    #[error("{program:?} cannot be started")]
    Start {
        /// What was to be run.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It could not be spoken to.
    #[error("cryptsetup cannot be given its input")]
    Input(#[source] io::Error),
    /// The key opens no keyslot.
    #[error("the key does not open the disk")]
    WrongKey,
    /// It ended with another failure.
    #[error("cryptsetup {command} ended with {status}: {message}")]
    Failed {
        /// The command, without its options.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed, cut.
        message: String,
    },
}

/// The program itself.
#[derive(Clone, Debug)]
pub struct CryptsetupProgram {
    path: PathBuf,
}

/// man 8 cryptsetup, "RETURN CODES": no permission, which means a bad passphrase.
const NO_PERMISSION: i32 = 2;

/// What cryptsetup may print into one of our errors.
const MAX_MESSAGE_CHARS: usize = 500;

impl CryptsetupProgram {
    /// Will run the program at this path.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }
}

impl Cryptsetup for CryptsetupProgram {
    fn run(&self, arguments: &[&str], input: &[u8]) -> Result<(), CryptsetupError> {
        let mut child = Command::new(&self.path)
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| CryptsetupError::Start {
                program: self.path.clone(),
                source,
            })?;
        // Keys are far shorter than a pipe's buffer, so this does not wait for the other side; dropping closes the pipe.
        let written = child.stdin.take().expect("the pipe was asked for").write_all(input);
        let output = child.wait_with_output().map_err(CryptsetupError::Input)?;
        if output.status.success() {
            return written.map_err(CryptsetupError::Input);
        }
        if output.status.code() == Some(NO_PERMISSION) {
            return Err(CryptsetupError::WrongKey);
        }
        Err(CryptsetupError::Failed {
            command: arguments.first().copied().unwrap_or_default().to_owned(),
            status: output.status,
            message: String::from_utf8_lossy(&output.stderr)
                .trim()
                .chars()
                .take(MAX_MESSAGE_CHARS)
                .collect(),
        })
    }
}
