//! The state disk of this node: opened by the disk-mapper under a throw-away key, re-keyed here.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use cluster_types::DiskUuid;
use disk_encryption::header::{ExpectedDisk, Header};
use disk_encryption::{CryptsetupProgram, ThrowAwayKey, find_state_disk, list_block_devices, paths};
use secret::StateDiskKey;
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use crate::lock::Locked;

/// Blocks for as long as the disk takes.
pub(crate) trait StateDisk: Send + Sync {
    fn uuid(&self) -> Result<DiskUuid, StateDiskError>;

    /// Replaces the throw-away key; afterwards it opens nothing and is gone.
    fn rekey(&self, key: &StateDiskKey) -> Result<(), StateDiskError>;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDiskError {
    #[error("the state disk's header or key that the disk-mapper left cannot be used")]
    HandOver(#[source] std::io::Error),
    #[error("the state disk's header cannot be used")]
    Header(#[from] disk_encryption::header::ReadHeaderError),
    #[error("the throw-away key has the wrong length")]
    ThrowAwayKey,
    #[error("the state disk cannot be found")]
    Find(#[from] disk_encryption::FindStateDiskError),
    #[error("the state disk cannot be re-keyed")]
    Rekey(#[from] disk_encryption::RekeyError),
}

/// The disk that the disk-mapper formatted and opened in this boot.
pub(crate) struct LuksStateDisk;

impl StateDisk for LuksStateDisk {
    fn uuid(&self) -> Result<DiskUuid, StateDiskError> {
        Ok(header()?.metadata().disk())
    }

    fn rekey(&self, key: &StateDiskKey) -> Result<(), StateDiskError> {
        let devices = list_block_devices(Path::new("/sys/block")).map_err(StateDiskError::HandOver)?;
        let device = find_state_disk(&devices)?.path();
        let cryptsetup = CryptsetupProgram::new(Path::new(paths::CRYPTSETUP));
        let disk = disk_encryption::StateDisk::new(&cryptsetup, &device, Path::new(paths::HEADER));
        disk.rekey(&header()?, &throw_away_key()?, key)?;
        fs::remove_file(paths::THROW_AWAY_KEY).map_err(StateDiskError::HandOver)
    }
}

/// The checked copy in memory; the disk's own is the host's to change.
fn header() -> Result<Header, StateDiskError> {
    let mut file = File::open(paths::HEADER).map_err(StateDiskError::HandOver)?;
    Ok(Header::read_from(&mut file, ExpectedDisk::FirstSeen)?)
}

fn throw_away_key() -> Result<ThrowAwayKey, StateDiskError> {
    let bytes = Zeroizing::new(fs::read(paths::THROW_AWAY_KEY).map_err(StateDiskError::HandOver)?);
    ThrowAwayKey::from_slice(&bytes).ok_or(StateDiskError::ThrowAwayKey)
}

pub(crate) async fn disk_uuid(disk: &Arc<dyn StateDisk>) -> Result<DiskUuid, StateDiskError> {
    let disk = disk.clone();
    spawn_blocking(move || disk.uuid())
        .await
        .expect("disk operations do not panic")
}

/// Only a node whose cluster is measured gets a disk that this cluster's keys open.
pub(crate) async fn rekey(_: &Locked, disk: &Arc<dyn StateDisk>, key: StateDiskKey) -> Result<(), StateDiskError> {
    let disk = disk.clone();
    spawn_blocking(move || disk.rekey(&key))
        .await
        .expect("disk operations do not panic")
}
