use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use cluster_types::DiskUuid;
use secret::StateDiskKey;
use secret::zeroize::Zeroizing;

use crate::cryptsetup::Cryptsetup;
use crate::header::{ExpectedDisk, Header, ReadHeaderError};
use crate::key::EphemeralKey;
use crate::state_disk::{RekeyError, StateDisk};

/// The open state disk of a node that has not joined yet, as the disk-mapper left it to the bootstrapper.
///
/// ```no_run
/// # use std::path::Path;
/// # use disk_encryption::{CryptsetupProgram, NewStateDisk, find_state_disk, list_block_devices, paths};
/// # use std::error::Error;
/// fn join(ticket_disk: cluster_types::DiskUuid, key: &secret::StateDiskKey) -> Result<(), Box<dyn Error>> {
///     let device = find_state_disk(&list_block_devices(Path::new("/sys/block"))?)?.path();
///     let new_disk = NewStateDisk::load(&device, Path::new(paths::HEADER), Path::new(paths::EPHEMERAL_KEY))?;
///     new_disk.rekey(&CryptsetupProgram::new(Path::new(paths::CRYPTSETUP)), ticket_disk, key)?;
///     Ok(())
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct NewStateDisk {
    device: PathBuf,
    header_file: PathBuf,
    key_file: PathBuf,
    header: Header,
    key: EphemeralKey,
}

/// There is no new state disk.
#[derive(Debug, thiserror::Error)]
pub enum LoadNewStateDiskError {
    /// The header in memory cannot be used.
    #[error("cannot use {path}")]
    Header {
        /// The file in memory, which the disk-mapper left.
        path: PathBuf,
        /// Why it could not be read, or how it differs from our shape.
        source: ReadHeaderError,
    },
    /// The disk has been re-keyed already.
    #[error("disk {0} belongs to a node that has joined")]
    Known(DiskUuid),
    /// The ephemeral key cannot be read.
    #[error("cannot read {path}")]
    Key {
        /// The file in memory, which the disk-mapper left.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The ephemeral key is not one.
    #[error("{path} does not have 32 bytes")]
    KeyLength {
        /// The file in memory, which the disk-mapper left.
        path: PathBuf,
    },
}

impl NewStateDisk {
    /// Loads header and ephemeral key from memory. Of the disk itself nothing is read.
    ///
    /// # Errors
    /// When one of the files is missing or wrong, or the disk is not new.
    pub fn load(device: &Path, header_file: &Path, key_file: &Path) -> Result<Self, LoadNewStateDiskError> {
        let header = read_header(header_file).map_err(|source| LoadNewStateDiskError::Header {
            path: header_file.to_owned(),
            source,
        })?;
        if header.metadata().is_initialised() {
            return Err(LoadNewStateDiskError::Known(header.metadata().disk()));
        }
        let failed = |source| LoadNewStateDiskError::Key {
            path: key_file.to_owned(),
            source,
        };
        let bytes = Zeroizing::new(fs::read(key_file).map_err(failed)?);
        let key = EphemeralKey::from_slice(&bytes);
        let key = key.ok_or_else(|| LoadNewStateDiskError::KeyLength {
            path: key_file.to_owned(),
        })?;
        Ok(Self {
            device: device.to_owned(),
            header_file: header_file.to_owned(),
            key_file: key_file.to_owned(),
            header,
            key,
        })
    }

    /// The UUID with which the disk was formatted.
    #[must_use]
    pub fn disk(&self) -> DiskUuid {
        self.header.metadata().disk()
    }

    /// Re-keys the disk as [`StateDisk::rekey`] does, then deletes the ephemeral key.
    ///
    /// # Errors
    /// When re-keying fails; the ephemeral key is then still there.
    pub fn rekey(self, cryptsetup: &impl Cryptsetup, disk: DiskUuid, key: &StateDiskKey) -> Result<(), RekeyError> {
        let state_disk = StateDisk::new(cryptsetup, &self.device, &self.header_file);
        state_disk.rekey(&self.header, &self.key, disk, key)?;
        fs::remove_file(&self.key_file).map_err(RekeyError::DeleteKey)
    }
}

pub(crate) fn read_header(path: &Path) -> Result<Header, ReadHeaderError> {
    let mut file = File::open(path).map_err(ReadHeaderError::Read)?;
    Header::read_from(&mut file, ExpectedDisk::FirstSeen)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::header::HEADER_SIZE;
    use crate::header::tests::header;

    /// What the disk mapper leaves behind.
    fn left_behind(header: &Header, key: &[u8]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut file = File::create(folder.path().join("header")).unwrap();
        file.set_len(HEADER_SIZE).unwrap();
        header.write_to(&mut file, |_| Ok(())).unwrap();
        fs::write(folder.path().join("key"), key).unwrap();
        folder
    }

    /// The call under test.
    fn load(folder: &TempDir) -> Result<NewStateDisk, LoadNewStateDiskError> {
        let path = folder.path();
        NewStateDisk::load(&path.join("disk"), &path.join("header"), &path.join("key"))
    }

    #[test]
    fn loads_what_the_disk_mapper_left() {
        let loaded = load(&left_behind(&header(), &[7; 32])).unwrap();
        assert_eq!(loaded.disk(), header().metadata().disk());
        assert!(!format!("{loaded:?}").contains("7, 7"), "key is printed");
    }

    #[test]
    fn rejects_disk_that_is_known() {
        let refusal = load(&left_behind(&header().marked(true), &[7; 32])).unwrap_err();
        assert!(matches!(refusal, LoadNewStateDiskError::Known(_)), "{refusal:?}");
    }

    #[test]
    fn rejects_key_of_another_length() {
        let refusal = load(&left_behind(&header(), &[7; 31])).unwrap_err();
        assert!(
            matches!(refusal, LoadNewStateDiskError::KeyLength { .. }),
            "{refusal:?}"
        );
    }

    #[test]
    fn rejects_missing_key() {
        let folder = left_behind(&header(), &[7; 32]);
        fs::remove_file(folder.path().join("key")).unwrap();
        let refusal = load(&folder).unwrap_err();
        assert!(matches!(refusal, LoadNewStateDiskError::Key { .. }), "{refusal:?}");
    }

    #[test]
    fn rejects_missing_header() {
        let refusal = load(&tempfile::tempdir().unwrap()).unwrap_err();
        assert!(matches!(refusal, LoadNewStateDiskError::Header { .. }), "{refusal:?}");
    }
}
