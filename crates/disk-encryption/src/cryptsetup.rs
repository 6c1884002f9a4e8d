//! Running the `cryptsetup` program.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Runs cryptsetup with a secret on its standard input.
///
/// This is the only place where keys leave this process. They go through a pipe and are never an argument, an environment
/// variable or a file.
pub trait Cryptsetup {
    /// Runs a command to its end, with `input` as its standard input.
    ///
    /// # Errors
    /// When the program cannot be started or fails.
    fn run(&self, arguments: &[&str], input: &[u8]) -> Result<(), CryptsetupError>;
}

/// A cryptsetup command failed.
#[derive(Debug, thiserror::Error)]
pub enum CryptsetupError {
    /// It could not be started.
    #[error("cannot start {program:?}")]
    Start {
        /// Path of the cryptsetup program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its input could not be written or its end not awaited.
    #[error("cannot write cryptsetup's input")]
    Input(#[source] io::Error),
    /// The key does not open the keyslot.
    #[error("the key does not open the disk")]
    WrongKey,
    /// It failed for another reason.
    #[error("cryptsetup {command} ended with {status}: {message}")]
    Failed {
        /// The command, without its options.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The beginning of what it printed.
        message: String,
    },
}

/// The cryptsetup program of this machine.
#[derive(Clone, Debug)]
pub struct CryptsetupProgram {
    path: PathBuf,
}

/// cryptsetup(8), "RETURN CODES": no permission, which means a wrong passphrase.
const NO_PERMISSION: i32 = 2;

/// How much of cryptsetup's output an error shows.
const MAX_MESSAGE_CHARS: usize = 500;

impl CryptsetupProgram {
    /// Takes the program's path.
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
        // Keys are far shorter than a pipe's buffer, so writing does not block. Dropping the pipe closes it.
        let written = child.stdin.take().expect("standard input is piped").write_all(input);
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
