//! Finds the root file system and its hash tree.
//!
//! Partitions are found by UUIDs that are derived from the root hash (Discoverable Partitions Specification, "verity"). The image
//! builder also writes them as the partitions' names, because kernels before 6.13 report only names, and so none of our programs
//! has to parse a partition table. A host that makes partitions with these names gains nothing: dm-verity checks every block against
//! the hash.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The two partitions of the image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Partitions {
    pub(crate) root: PathBuf,
    pub(crate) hash_tree: PathBuf,
}

/// The image's partitions were not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindPartitionError {
    #[error("no disk has this image's partition {uuid} (waited {waited:?})")]
    Absent { uuid: Uuid, waited: Duration },
    #[error("cannot read the list of disks")]
    List(#[source] io::Error),
}

/// Waits for the partitions of the image with this root hash.
pub(crate) fn find(root_hash: &[u8; 32]) -> Result<Partitions, FindPartitionError> {
    let [root, hash_tree] = uuids(root_hash);
    Ok(Partitions {
        root: wait_for(root)?,
        hash_tree: wait_for(hash_tree)?,
    })
}

/// The first half of the root hash names the root partition, the second half that of the hash tree.
fn uuids(root_hash: &[u8; 32]) -> [Uuid; 2] {
    let [first, second] = root_hash
        .as_chunks::<16>()
        .0
        .try_into()
        .expect("32 bytes are two times 16");
    [Uuid::from_bytes(first), Uuid::from_bytes(second)]
}

fn wait_for(uuid: Uuid) -> Result<PathBuf, FindPartitionError> {
    let start = Instant::now();
    loop {
        if let Some(device) = device_of(Path::new("/sys/class/block"), uuid).map_err(FindPartitionError::List)? {
            return Ok(device);
        }
        if start.elapsed() > DEADLINE {
            return Err(FindPartitionError::Absent { uuid, waited: DEADLINE });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The device node of the partition whose name is this UUID, according to the kernel's reading of the partition tables.
fn device_of(class: &Path, uuid: Uuid) -> io::Result<Option<PathBuf>> {
    let wanted = format!("PARTNAME={uuid}");
    for entry in fs::read_dir(class)? {
        let entry = entry?;
        // A device that disappears meanwhile is not ours.
        let properties = fs::read_to_string(entry.path().join("uevent")).unwrap_or_default();
        if properties.lines().any(|line| line == wanted) {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_the_halves_of_the_root_hash() {
        let hash: Vec<u8> = (0..32).collect();
        let [root, hash_tree] = uuids(hash.as_slice().try_into().unwrap());
        assert_eq!(root.to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert_eq!(hash_tree.to_string(), "10111213-1415-1617-1819-1a1b1c1d1e1f");
    }
}
