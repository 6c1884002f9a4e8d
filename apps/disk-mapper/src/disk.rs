//! Finds the state disk and reads it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use disk_encryption::{Contents, FindStateDiskError, find_state_disk, list_block_devices};

/// How long a disk may take to appear once its driver is loaded. It is there within a second; a busy host takes longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// The state disk could not be found or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    /// The kernel's list of disks cannot be read.
    #[error("cannot list disks")]
    List(#[source] io::Error),
    /// There is none, or more than one.
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

/// Waits for the state disk. Two state disks are refused at once.
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
        Ok((Contents::look_at(&mut device)?, size))
    };
    look().map_err(|source| LookError::Read {
        path: path.to_owned(),
        source,
    })
}
