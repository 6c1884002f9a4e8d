//! Finding the state disk and looking at it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use disk_encryption::header::{ExpectedDisk, Header, ReadHeaderError};
use disk_encryption::{FindStateDiskError, find_state_disk, is_blank, list_block_devices};

use crate::decide::Contents;

/// How long a disk may take to appear after its driver was loaded.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// Why there is no state disk to work with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    /// The kernel's list of disks cannot be read.
    #[error("disks cannot be listed")]
    List(#[source] io::Error),
    /// None or too many.
    #[error("no state disk")]
    Find(#[from] FindStateDiskError),
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Its device node.
        path: PathBuf,
        source: io::Error,
    },
}

/// Waits until the state disk is there. Two of them are refused at once.
pub(crate) fn wait_for_state_disk() -> Result<PathBuf, LookError> {
    let start = Instant::now();
    loop {
        let devices = list_block_devices(Path::new("/sys/block")).map_err(LookError::List)?;
        match find_state_disk(&devices) {
            Ok(device) if device.path().exists() => return Ok(device.path()),
            Ok(_) | Err(FindStateDiskError::Missing) if start.elapsed() < DEADLINE => std::thread::sleep(INTERVAL),
            Ok(device) => {
                let source = io::ErrorKind::NotFound.into();
                return Err(LookError::Read {
                    path: device.path(),
                    source,
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Copies to memory what tells one disk from another. Returns that and the size in bytes.
pub(crate) fn look_at(path: &Path) -> Result<(Contents, u64), LookError> {
    let look = || -> io::Result<(Contents, u64)> {
        let mut device = File::open(path)?;
        let size = device.seek(SeekFrom::End(0))?;
        if is_blank(&mut device)? {
            return Ok((Contents::Blank, size));
        }
        let contents = match Header::read_from(&mut device, ExpectedDisk::FirstSeen) {
            Ok(header) => Contents::Ours {
                disk: header.metadata().disk(),
                initialised: header.metadata().is_initialised(),
            },
            Err(ReadHeaderError::Refused(reason)) => Contents::Other(reason),
            Err(ReadHeaderError::Read(error)) => return Err(error),
        };
        Ok((contents, size))
    };
    look().map_err(|source| LookError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use disk_encryption::header::HeaderError;

    use super::*;

    fn look_at_disk_with(bytes: &[u8]) -> Contents {
        let mut disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(32 << 20).unwrap();
        disk.write_all(bytes).unwrap();
        look_at(disk.path()).unwrap().0
    }

    #[test]
    fn zeros_are_blank() {
        assert!(matches!(look_at_disk_with(&[]), Contents::Blank));
    }

    #[test]
    fn anything_else_is_not() {
        let contents = look_at_disk_with(b"LUKS\xba\xbe");
        assert!(
            matches!(contents, Contents::Other(HeaderError::Version { found: 0, .. })),
            "{contents:?}"
        );
    }
}
