use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use atomic_file::{Access, replace};
use aws_lc_rs::rand;
use digest::Digest;
use serde::{Deserialize, Serialize};

use crate::report::Statements;

/// A machine: its key, and what it would measure.
#[derive(Clone, Debug)]
pub struct KeyFile(PathBuf);

/// The machine cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Only emulators have one.
    #[error("a key file stands in for a device; no machine has one")]
    NotAMachine,
    /// The file cannot be read or written.
    #[error("the key file cannot be used")]
    Io(#[from] io::Error),
    /// The file is not one of ours.
    #[error("the key file is malformed")]
    Json(#[from] serde_json::Error),
}

/// What is in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    #[serde(with = "hex::serde")]
    pub(crate) seed: [u8; 32],
    pub(crate) image: Digest,
    pub(crate) host: String,
    pub(crate) statements: Statements,
}

impl KeyFile {
    /// A new machine that booted this image and has said nothing about itself.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: &Path, image: Digest, host: &str) -> Result<Self, KeyFileError> {
        let mut seed = [0; 32];
        rand::fill(&mut seed).expect("the system's random source does not fail");
        let file = Self::at(path);
        file.write(&State {
            seed,
            image,
            host: host.to_owned(),
            statements: Statements::default(),
        })?;
        Ok(file)
    }

    /// The machine in this file.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes it look as if another image had booted.
    ///
    /// # Errors
    /// When the file cannot be changed.
    pub fn set_image(&self, image: Digest) -> Result<(), KeyFileError> {
        self.change(|state| state.image = image)
    }

    /// Moves the machine to another host.
    ///
    /// # Errors
    /// When the file cannot be changed.
    pub fn set_host(&self, host: &str) -> Result<(), KeyFileError> {
        self.change(|state| host.clone_into(&mut state.host))
    }

    /// Adds to the statements, which cannot be taken back.
    pub(crate) fn state(&self, add: impl FnOnce(&mut Statements)) -> Result<(), KeyFileError> {
        self.change(|state| add(&mut state.statements))
    }

    pub(crate) fn read(&self) -> Result<State, KeyFileError> {
        Ok(serde_json::from_slice(&fs::read(&self.0)?)?)
    }

    fn change(&self, change: impl FnOnce(&mut State)) -> Result<(), KeyFileError> {
        let mut state = self.read()?;
        change(&mut state);
        self.write(&state)
    }

    fn write(&self, state: &State) -> Result<(), KeyFileError> {
        Ok(replace(&self.0, &serde_json::to_vec(state)?, Access::Owner)?)
    }
}
