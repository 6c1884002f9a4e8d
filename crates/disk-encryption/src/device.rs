//! The disks of a machine.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::header::HEADER_SIZE;
use crate::paths;

/// A disk in the kernel's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// The kernel's name, such as `vdb`.
    pub name: String,
    /// The name that its manufacturer gave it; in a VM, that is the host.
    pub serial: String,
}

/// No single disk is the state disk.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindStateDiskError {
    /// No disk claims to be it.
    #[error("no disk has the serial number '{}'", paths::SERIAL)]
    Missing,
    /// More than one claims to be it, and the host could influence a choice between them.
    #[error("{one} and {other} both have the serial number '{}'", paths::SERIAL)]
    Several {
        /// Device node of one of them.
        one: String,
        /// Device node of another one.
        other: String,
    },
}

impl BlockDevice {
    /// Its device node.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

/// Lists the disks below a `/sys/block`. Devices without a serial number have an empty one.
///
/// # Errors
/// When the folder cannot be read.
pub fn list_block_devices(sys_block: &Path) -> io::Result<Vec<BlockDevice>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(sys_block)? {
        let entry = entry?;
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        devices.push(BlockDevice {
            name: entry.file_name().to_string_lossy().into_owned(),
            serial: serial.trim().to_owned(),
        });
    }
    devices.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(devices)
}

/// Finds the one disk that claims to be the state disk.
///
/// The serial number only says which disk the host means. It does not make the contents more trustworthy.
///
/// # Errors
/// When there is none, or more than one.
pub fn find_state_disk(devices: &[BlockDevice]) -> Result<&BlockDevice, FindStateDiskError> {
    let mut found = devices.iter().filter(|device| device.serial == paths::SERIAL);
    let first = found.next().ok_or(FindStateDiskError::Missing)?;
    match found.next() {
        None => Ok(first),
        Some(second) => Err(FindStateDiskError::Several {
            one: first.name.clone(),
            other: second.name.clone(),
        }),
    }
}

/// Whether a disk has only zeros where contents would be recognised: in the place of our header (16 MiB, where partition
/// tables and file systems start, too) and in the last MiB (where backup tables and RAID superblocks are).
///
/// # Errors
/// When it cannot be read.
pub(crate) fn is_blank(device: &mut (impl Read + Seek)) -> io::Result<bool> {
    const TAIL: u64 = 1 << 20;
    let size = device.seek(SeekFrom::End(0))?;
    Ok(is_zero(device, 0, HEADER_SIZE.min(size))? && is_zero(device, size.saturating_sub(TAIL), TAIL.min(size))?)
}

fn is_zero(device: &mut (impl Read + Seek), offset: u64, mut length: u64) -> io::Result<bool> {
    let mut buffer = vec![0; 1 << 20];
    device.seek(SeekFrom::Start(offset))?;
    while length > 0 {
        let part = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        device.read_exact(&mut buffer[..part])?;
        if buffer[..part].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        length -= part as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn device(name: &str, serial: &str) -> BlockDevice {
        BlockDevice {
            name: name.to_owned(),
            serial: serial.to_owned(),
        }
    }

    #[test]
    fn finds_the_disk_with_the_serial_number() {
        let devices = [device("vda", ""), device("vdb", "state"), device("vdc", "state2")];
        assert_eq!(find_state_disk(&devices).unwrap().path(), Path::new("/dev/vdb"));
    }

    #[test]
    fn rejects_two_state_disks() {
        let devices = [device("vdb", "state"), device("vdc", "state")];
        assert_eq!(
            find_state_disk(&devices).unwrap_err(),
            FindStateDiskError::Several {
                one: "vdb".into(),
                other: "vdc".into()
            }
        );
    }

    #[test]
    fn rejects_machine_without_state_disk() {
        assert_eq!(
            find_state_disk(&[device("vda", "")]).unwrap_err(),
            FindStateDiskError::Missing
        );
    }

    #[test]
    fn reads_serial_numbers_of_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir(sys.path().join("vda")).unwrap();
        fs::create_dir(sys.path().join("vdb")).unwrap();
        fs::write(sys.path().join("vdb/serial"), "state\n").unwrap();
        let found = list_block_devices(sys.path()).unwrap();
        assert_eq!(found, [device("vda", ""), device("vdb", "state")]);
    }

    fn blank_with_byte_at(offset: Option<u64>) -> bool {
        let mut disk = tempfile::tempfile().unwrap();
        disk.set_len(64 << 20).unwrap();
        if let Some(offset) = offset {
            disk.seek(SeekFrom::Start(offset)).unwrap();
            disk.write_all(&[1]).unwrap();
        }
        is_blank(&mut disk).unwrap()
    }

    #[test]
    fn blank_is_zeros_at_both_ends() {
        assert!(blank_with_byte_at(None));
        for offset in [0, 4096, (16 << 20) - 1, 63 << 20, (64 << 20) - 1] {
            assert!(!blank_with_byte_at(Some(offset)), "{offset}");
        }
    }

    #[test]
    fn disk_smaller_than_a_header_can_be_looked_at() {
        let mut disk = tempfile::tempfile().unwrap();
        disk.set_len(1000).unwrap();
        assert!(is_blank(&mut disk).unwrap());
    }
}
