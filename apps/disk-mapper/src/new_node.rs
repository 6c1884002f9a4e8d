//! The state disk of a new node.

use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use cluster_types::DiskUuid;
use disk_encryption::paths::{
    CRYPTSETUP, EPHEMERAL_KEY, HEADER, MAPPED_DEVICE, MAPPING, MKFS_EXT4, MOUNT_POINT, RUN_DIR,
};
use disk_encryption::{
    CryptsetupProgram, DiskKey, EphemeralKey, StateDisk, mount_state_disk, write_sectors_that_mkfs_reads,
};
use uuid::Uuid;

use crate::console::Console;
use crate::memory;

/// The file system could not be created.
#[derive(Debug, thiserror::Error)]
enum MakeFileSystemError {
    /// mkfs could not be started.
    #[error("cannot start {MKFS_EXT4}")]
    Start(#[source] io::Error),
    #[error("{MKFS_EXT4} failed ({status}): {message}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        message: String,
    },
}

/// Turns a blank disk into the state disk of a new node:
///
/// 1. An ephemeral key, in memory only.
/// 2. A new UUID, and the disk formatted with both.
/// 3. The disk opened as `/dev/mapper/state`.
/// 4. A file system on it.
/// 5. The file system mounted at `/run/state`.
///
/// A crash at any point leaves a disk that the next boot formats again.
pub(crate) fn prepare(device: &Path, console: &Console) -> Result<()> {
    memory::make_folder(Path::new(RUN_DIR))?;
    let key = EphemeralKey::random()?;
    memory::write_key(Path::new(EPHEMERAL_KEY), &key)?;

    let cryptsetup = CryptsetupProgram::new(Path::new(CRYPTSETUP));
    let state_disk = StateDisk::new(&cryptsetup, device, Path::new(HEADER));
    let disk = DiskUuid::from(Uuid::new_v4());
    let header = state_disk.format(disk, &key)?;
    console.say(&format!("formatted disk {disk} under an ephemeral key"));

    state_disk.open(&header, DiskKey::Ephemeral(&key), MAPPING)?;
    console.say("opened the disk");

    make_file_system(Path::new(MAPPED_DEVICE))?;
    console.say("created a file system");

    mount_state_disk().with_context(|| format!("cannot mount {MAPPED_DEVICE}"))?;
    console.say(&format!("mounted at {MOUNT_POINT}, ready for init or join"));
    Ok(())
}

/// Makes an ext4 that reads no sector it has not written; see `disk_encryption::write_sectors_that_mkfs_reads`.
fn make_file_system(device: &Path) -> Result<()> {
    write_sectors_that_mkfs_reads(device).context("cannot write the file system's sectors")?;
    let output = Command::new(MKFS_EXT4)
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-L", "state"])
        // A file system that continues regardless would overwrite blocks that fail their integrity check.
        .args(["-e", "remount-ro"])
        // Every block of the journal is written now, which takes half of mkfs's time for 20 GiB.
        .args(["-J", "size=64"])
        // Discarding leaves sectors without a tag, and an unwritten journal cannot be recovered from. The kernel reads a block of
        // inodes before anything was written to it if two processes create the first two files in it at the same time.
        .args(["-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"])
        // One inode for 32 KiB, half of the default: they are written now.
        .args(["-i", "32768"])
        .arg(device)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(MakeFileSystemError::Start)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(MakeFileSystemError::Failed {
        status: output.status,
        message,
    }
    .into())
}
