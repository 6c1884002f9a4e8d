//! Files that must never reach a disk.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use disk_encryption::EphemeralKey;
use rustix::fs::statfs;

/// The file system in memory that `/run` is (`linux/magic.h`).
const TMPFS_MAGIC: u32 = 0x0102_1994;
/// `linux/magic.h`: the file system of the initramfs itself.
const RAMFS_MAGIC: u32 = 0x8584_58f6;

/// A secret could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteSecretError {
    /// The folder could not be created.
    #[error("cannot create {path}")]
    Folder { path: PathBuf, source: io::Error },
    /// The folder is on something that may be a disk.
    #[error("{path} is on a file system of type {found:#x}, which is not memory")]
    NotInMemory {
        path: PathBuf,
        /// The file system's magic number.
        found: u32,
    },
    /// The file could not be written.
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
}

/// Creates a folder for secrets, and checks that it is in memory.
pub(crate) fn make_folder(path: &Path) -> Result<(), WriteSecretError> {
    let failed = |source| WriteSecretError::Folder {
        path: path.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let kind = statfs(path).map_err(|error| failed(error.into()))?.f_type;
    // The magic numbers have 32 bits; the field's type differs from one architecture to the next.
    match kind as u32 {
        TMPFS_MAGIC | RAMFS_MAGIC => Ok(()),
        found => Err(WriteSecretError::NotInMemory {
            path: path.to_owned(),
            found,
        }),
    }
}

/// Writes the ephemeral key where the bootstrapper reads it.
pub(crate) fn write_key(path: &Path, key: &EphemeralKey) -> Result<(), WriteSecretError> {
    let write = || -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
        file.write_all(key.expose())
    };
    write().map_err(|source| WriteSecretError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn key_file_is_readable_by_its_owner_only_and_can_be_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for byte in [1, 2] {
            write_key(&path, &EphemeralKey::from_bytes([byte; 32])).unwrap();
            assert_eq!(fs::read(&path).unwrap(), [byte; 32]);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o400);
        }
    }

    #[test]
    fn rejects_folder_that_is_not_in_memory() {
        // Of the file systems every Linux has, one that surely is neither of the two.
        let refusal = make_folder(Path::new("/proc/self")).unwrap_err();
        assert!(
            matches!(refusal, WriteSecretError::NotInMemory { found: 0x9fa0, .. }),
            "{refusal:?}"
        );
    }
}
