//! This node's state disk: the disk-mapper opened it under an ephemeral key, and it is re-keyed here. After a reboot, it is opened here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cluster_types::DiskUuid;
use disk_encryption::{
    CryptsetupError, CryptsetupProgram, FindStateDiskError, KnownStateDisk, LoadKnownStateDiskError,
    LoadNewStateDiskError, NewStateDisk, OpenError, RekeyError, find_state_disk, list_block_devices, mount_state_disk,
    paths,
};
use secret::StateDiskKey;
use tokio::task::spawn_blocking;

use crate::lock::Locked;

/// Its methods block until the disk is done.
pub(crate) trait StateDisk: Send + Sync {
    fn uuid(&self) -> Result<DiskUuid, StateDiskError>;

    /// Replaces the ephemeral key, which then opens nothing and is deleted. The disk gets the UUID that the key is for.
    fn rekey(&self, disk: DiskUuid, key: &StateDiskKey) -> Result<(), StateDiskError>;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDiskError {
    #[error("cannot list this machine's disks")]
    List(#[source] io::Error),
    #[error("cannot find the state disk")]
    Find(#[from] FindStateDiskError),
    #[error("the state disk is not a new disk opened by the disk-mapper")]
    Load(#[from] LoadNewStateDiskError),
    #[error("the state disk is not one that has joined a cluster")]
    LoadKnown(#[from] LoadKnownStateDiskError),
    #[error("cannot re-key the state disk")]
    Rekey(#[from] RekeyError),
}

/// The disk that the disk-mapper formatted and opened during this boot.
pub(crate) struct LuksStateDisk;

impl StateDisk for LuksStateDisk {
    fn uuid(&self) -> Result<DiskUuid, StateDiskError> {
        Ok(load()?.disk())
    }

    fn rekey(&self, disk: DiskUuid, key: &StateDiskKey) -> Result<(), StateDiskError> {
        let cryptsetup = CryptsetupProgram::new(Path::new(paths::CRYPTSETUP));
        Ok(load()?.rekey(&cryptsetup, disk, key)?)
    }
}

fn device() -> Result<PathBuf, StateDiskError> {
    let devices = list_block_devices(Path::new("/sys/block")).map_err(StateDiskError::List)?;
    Ok(find_state_disk(&devices)?.path())
}

fn load() -> Result<NewStateDisk, StateDiskError> {
    Ok(NewStateDisk::load(
        &device()?,
        Path::new(paths::HEADER),
        Path::new(paths::EPHEMERAL_KEY),
    )?)
}

/// The state disk of a node that was a member in an earlier boot, still closed. Its methods block until the disk is done.
pub(crate) trait ClosedDisk: Send + Sync {
    fn uuid(&self) -> DiskUuid;

    fn open(&self, key: &StateDiskKey) -> Result<(), OpenDiskError>;

    /// Mounts its file system.
    fn mount(&self) -> Result<(), OpenDiskError>;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenDiskError {
    /// The key is another disk's.
    #[error("the key does not open the state disk")]
    WrongKey,
    #[error("cannot open the state disk")]
    Open(#[source] OpenError),
    #[error("cannot mount the state disk")]
    Mount(#[source] io::Error),
}

pub(crate) struct ClosedLuksDisk(KnownStateDisk);

impl ClosedLuksDisk {
    pub(crate) fn find() -> Result<Self, StateDiskError> {
        Ok(Self(KnownStateDisk::load(&device()?, Path::new(paths::HEADER))?))
    }
}

impl ClosedDisk for ClosedLuksDisk {
    fn uuid(&self) -> DiskUuid {
        self.0.disk()
    }

    fn open(&self, key: &StateDiskKey) -> Result<(), OpenDiskError> {
        let cryptsetup = CryptsetupProgram::new(Path::new(paths::CRYPTSETUP));
        let opened = self.0.open(&cryptsetup, key, paths::MAPPING);
        opened.map_err(|error| match error {
            OpenError::Cryptsetup(CryptsetupError::WrongKey) => OpenDiskError::WrongKey,
            error => OpenDiskError::Open(error),
        })
    }

    fn mount(&self) -> Result<(), OpenDiskError> {
        mount_state_disk().map_err(OpenDiskError::Mount)
    }
}

pub(crate) async fn disk_uuid(disk: &Arc<dyn StateDisk>) -> Result<DiskUuid, StateDiskError> {
    let disk = disk.clone();
    spawn_blocking(move || disk.uuid())
        .await
        .expect("disk operations do not panic")
}

/// Only a node that has measured its membership gets a disk that this cluster's keys open.
pub(crate) async fn rekey(
    _: &Locked,
    disk: &Arc<dyn StateDisk>,
    uuid: DiskUuid,
    key: StateDiskKey,
) -> Result<(), StateDiskError> {
    let disk = disk.clone();
    spawn_blocking(move || disk.rekey(uuid, &key))
        .await
        .expect("disk operations do not panic")
}
