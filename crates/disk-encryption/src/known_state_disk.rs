use std::path::{Path, PathBuf};

use cluster_types::DiskUuid;
use secret::StateDiskKey;

use crate::cryptsetup::Cryptsetup;
use crate::header::{Header, ReadHeaderError};
use crate::key::DiskKey;
use crate::new_state_disk::read_header;
use crate::state_disk::{OpenError, StateDisk};

/// The state disk of a node that joined a cluster in an earlier boot.
pub struct KnownStateDisk {
    device: PathBuf,
    header_file: PathBuf,
    header: Header,
}

/// The disk's node never joined.
#[derive(Debug, thiserror::Error)]
pub enum LoadKnownStateDiskError {
    /// The header cannot be read or does not have our shape.
    #[error("cannot use the header of {path}")]
    Header {
        /// The disk's device node.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ReadHeaderError,
    },
    /// It says that its node is new. The host may have changed it meanwhile.
    #[error("disk {0} never joined a cluster")]
    New(DiskUuid),
}

impl KnownStateDisk {
    /// Copies the header to memory, from where it is used. `header_file` must be on a file system in memory.
    ///
    /// # Errors
    /// When it is not a header of ours that has joined.
    pub fn load(device: &Path, header_file: &Path) -> Result<Self, LoadKnownStateDiskError> {
        let header = read_header(device).map_err(|source| LoadKnownStateDiskError::Header {
            path: device.to_owned(),
            source,
        })?;
        if !header.metadata().is_initialised() {
            return Err(LoadKnownStateDiskError::New(header.metadata().disk()));
        }
        Ok(Self {
            device: device.to_owned(),
            header_file: header_file.to_owned(),
            header,
        })
    }

    /// Which disk it says it is. Another one's key does not open it.
    #[must_use]
    pub fn disk(&self) -> DiskUuid {
        self.header.metadata().disk()
    }

    /// Opens the disk as [`StateDisk::open`] does.
    ///
    /// # Errors
    /// When the key is not this disk's, or the kernel refuses the disk.
    pub fn open(&self, cryptsetup: &impl Cryptsetup, key: &StateDiskKey, mapping: &str) -> Result<(), OpenError> {
        let disk = StateDisk::new(cryptsetup, &self.device, &self.header_file);
        disk.open(&self.header, DiskKey::State(key), mapping)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs::{self, File};

    use super::*;
    use crate::CryptsetupError;
    use crate::header::tests::header;

    /// Takes every key, and keeps it.
    #[derive(Default)]
    struct Obedient(RefCell<Vec<Vec<u8>>>);

    impl Cryptsetup for Obedient {
        fn run(&self, _: &[&str], key: &[u8]) -> Result<(), CryptsetupError> {
            self.0.borrow_mut().push(key.to_vec());
            Ok(())
        }
    }

    fn disk_with(header: &Header) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut device = File::create_new(folder.path().join("device")).unwrap();
        header.write_to(&mut device, |_| Ok(())).unwrap();
        folder
    }

    fn load(folder: &tempfile::TempDir) -> Result<KnownStateDisk, LoadKnownStateDiskError> {
        KnownStateDisk::load(&folder.path().join("device"), &folder.path().join("header"))
    }

    #[test]
    fn a_disk_that_joined_is_opened_with_its_key_and_the_header_in_memory() {
        let folder = disk_with(&header().marked(true));
        let disk = load(&folder).unwrap();
        assert_eq!(disk.disk(), header().metadata().disk());
        // The host changes the disk meanwhile.
        fs::write(folder.path().join("device"), b"").unwrap();
        let cryptsetup = Obedient::default();
        disk.open(&cryptsetup, &StateDiskKey::from_bytes([7; 32]), "state")
            .unwrap();
        assert_eq!(*cryptsetup.0.borrow(), [[7; 32]]);
        assert!(folder.path().join("header").exists());
    }

    #[test]
    fn a_disk_that_never_joined_or_is_not_ours_is_refused() {
        let new = disk_with(&header().marked(false));
        assert!(matches!(load(&new), Err(LoadKnownStateDiskError::New(_))));
        fs::write(new.path().join("device"), vec![0; 1 << 20]).unwrap();
        assert!(matches!(load(&new), Err(LoadKnownStateDiskError::Header { .. })));
    }
}
