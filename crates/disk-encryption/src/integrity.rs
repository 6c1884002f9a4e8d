//! What happens to sectors that were never written.
//!
//! dm-integrity keeps a tag for every sector. A disk that was not wiped has no valid tags, and wiping it writes the whole
//! disk, which takes minutes for 20 GiB in an emulated VM. We do not wipe. That means:
//!
//! **Reading a sector that this disk's key never wrote is an I/O error**, never zeros and never what the host put there.
//! A file system that reads only what it wrote never sees such an error, and for any other reader the error is right.
//!
//! A mounted ext4 reads only what it wrote, provided that its journal and its inodes were zeroed when it was made: recovery
//! after a crash reads one block past the last transaction, and of two processes that create the first two files in one block
//! of inodes each sees the other's and reads the block. `mkfs.ext4` itself does not: it looks for older file systems and changes
//! parts of blocks, which reads the rest of them. [`write_sectors_that_mkfs_reads`] writes zeros there first.

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::header::layout::SECTOR_SIZE;

/// Blocks of one ext4 block group: as many as one bitmap block of 4096 bytes has bits.
const BLOCKS_PER_GROUP: u64 = 8 * SECTOR_SIZE;
/// At the start: boot block, superblock, group descriptors and all the places by which other file systems are recognised.
const HEAD: u64 = 4 << 20;
/// At the end: the places of RAID and backup superblocks.
const TAIL: u64 = 256 << 10;
/// How many bytes are written at once.
const CHUNK: u64 = 1 << 20;

/// Writes zeros to the sectors of a freshly formatted disk that `mkfs.ext4 -b 4096` reads before it writes them.
///
/// # Errors
/// When the device cannot be written.
pub fn write_sectors_that_mkfs_reads(mapped: &Path) -> io::Result<()> {
    // Bypasses the page cache: a cached write of less than a page would first read the page, which must not happen.
    let flags = i32::try_from(OFlags::DIRECT.bits()).expect("O_DIRECT is a flag of open(2)");
    let mut device = OpenOptions::new().write(true).custom_flags(flags).open(mapped)?;
    let size = device.seek(SeekFrom::End(0))?;

    // Direct I/O needs memory that is aligned to the sector size.
    let memory = vec![0_u8; (CHUNK + SECTOR_SIZE) as usize];
    let start = memory.as_ptr().align_offset(SECTOR_SIZE as usize);
    let zeros = &memory[start..start + CHUNK as usize];
    for range in ranges(size) {
        let mut offset = range.start;
        while offset < range.end {
            let length = CHUNK.min(range.end - offset);
            device.write_all_at(&zeros[..length as usize], offset)?;
            offset += length;
        }
    }
    device.sync_data()
}

/// The ranges to write on a device of `size` bytes: the head, the tail, and the first block of each group with a backup
/// superblock.
fn ranges(size: u64) -> Vec<Range<u64>> {
    let size = size - size % SECTOR_SIZE;
    let group_size = BLOCKS_PER_GROUP * SECTOR_SIZE;
    let backups = backup_groups(size.div_ceil(group_size))
        .into_iter()
        .map(|group| group * group_size);
    let backups = backups.map(|start| start..(start + SECTOR_SIZE).min(size));
    let (head, tail) = (0..HEAD.min(size), size.saturating_sub(TAIL)..size);
    std::iter::once(head).chain(backups).chain([tail]).collect()
}

/// Groups with a backup superblock under `sparse_super`: 1 and the powers of 3, 5 and 7 (kernel documentation,
/// ext4, "Block and Inode Allocation Policy", "Layout").
fn backup_groups(groups: u64) -> Vec<u64> {
    let powers = |base: u64| std::iter::successors(Some(base), move |power| power.checked_mul(base));
    let mut backups = vec![1];
    backups.extend(
        [3, 5, 7]
            .into_iter()
            .flat_map(|base| powers(base).take_while(|power| *power < groups)),
    );
    backups.retain(|group| *group < groups);
    backups.sort_unstable();
    backups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_superblocks_are_those_of_sparse_super() {
        assert_eq!(backup_groups(1), [0; 0]);
        assert_eq!(backup_groups(30), [1, 3, 5, 7, 9, 25, 27]);
        assert_eq!(backup_groups(160), [1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn ranges_stay_inside_the_device() {
        for size in [0, 4096, 1 << 20, 5 << 20, 200 << 20, (20 << 30) - 12288] {
            for range in ranges(size) {
                assert!(range.start <= range.end && range.end <= size, "{range:?} of {size}");
                assert_eq!(range.start % SECTOR_SIZE, 0, "{range:?} of {size}");
            }
        }
    }

    #[test]
    fn twenty_gibibytes_need_few_writes() {
        let bytes: u64 = ranges(20 << 30).iter().map(|range| range.end - range.start).sum();
        assert!(bytes < 8 << 20, "{bytes}");
    }
}
