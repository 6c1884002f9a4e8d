//! Folders that hold results.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};

/// Removes a folder with everything in it. It need not exist.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Creates a folder, or empties an existing one.
pub(crate) fn empty(folder: &Path) -> Result<()> {
    remove(folder)?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}
