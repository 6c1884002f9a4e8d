//! The state disk of this node: opened by the disk-mapper under a throw-away key, re-keyed here.

use std::io;
use std::path::Path;
use std::sync::Arc;

use cluster_types::DiskUuid;
use disk_encryption::{
    CryptsetupProgram, FindStateDiskError, LoadNewStateDiskError, NewStateDisk, RekeyError, find_state_disk,
    list_block_devices, paths,
};
use secret::StateDiskKey;
use tokio::task::spawn_blocking;

use crate::lock::Locked;

/// Blocks for as long as the disk takes.
pub(crate) trait StateDisk: Send + Sync {
    fn uuid(&self) -> Result<DiskUuid, StateDiskError>;

    /// Replaces the throw-away key; afterwards it opens nothing and is gone.
    fn rekey(&self, key: &StateDiskKey) -> Result<(), StateDiskError>;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDiskError {
    #[error("the disks of this machine cannot be listed")]
    List(#[source] io::Error),
    #[error("the state disk cannot be found")]
    Find(#[from] FindStateDiskError),
    #[error("the state disk is not a new one that the disk-mapper opened")]
    Load(#[from] LoadNewStateDiskError),
    #[error("the state disk cannot be re-keyed")]
    Rekey(#[from] RekeyError),
}

/// The disk that the disk-mapper formatted and opened in this boot.
pub(crate) struct LuksStateDisk;

impl StateDisk for LuksStateDisk {
    fn uuid(&self) -> Result<DiskUuid, StateDiskError> {
        Ok(load()?.disk())
    }

    fn rekey(&self, key: &StateDiskKey) -> Result<(), StateDiskError> {
        let cryptsetup = CryptsetupProgram::new(Path::new(paths::CRYPTSETUP));
        Ok(load()?.rekey(&cryptsetup, key)?)
    }
}

fn load() -> Result<NewStateDisk, StateDiskError> {
    let devices = list_block_devices(Path::new("/sys/block")).map_err(StateDiskError::List)?;
    let device = find_state_disk(&devices)?.path();
    Ok(NewStateDisk::load(
        &device,
        Path::new(paths::HEADER),
        Path::new(paths::THROW_AWAY_KEY),
    )?)
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
