//! Programs that were built, wherever the cache has them.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Folders with built programs.
pub(super) struct Programs {
    folders: Vec<PathBuf>,
}

impl Programs {
    pub(super) fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    pub(super) fn path(&self, name: &str) -> Result<PathBuf> {
        let mut paths = self.folders.iter().map(|folder| folder.join(name));
        let path = paths.find(|path| path.is_file());
        path.with_context(|| format!("{name} was not built"))
    }
}
