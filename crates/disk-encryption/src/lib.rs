//! State disks: LUKS2 with dm-integrity, made and opened by the `cryptsetup` program.
//!
//! The format is the predecessor's, so that its disks open: AES-256-XTS with HMAC-SHA256 over 4096-byte sectors, one
//! keyslot, one token. [`header`] explains how little of a header on a disk is believed, and why.
//!
//! What this crate does not do: it does not decide whether a disk may be formatted (the disk-mapper does), it derives no
//! keys, and it does not protect from replay. A host can restore an older state of a whole disk. It cannot forge sectors, but
//! it can restore older ones in their own place.
//!
//! dm-integrity's own superblock and journal are also on the disk, and are not authenticated. dm-crypt computes tags over
//! sector number and ciphertext, so changing superblock, journal or tags makes reads fail and does nothing else.

mod contents;
mod cryptsetup;
mod device;
pub mod header;
mod integrity;
mod key;
mod known_state_disk;
mod mount;
mod new_state_disk;
pub mod paths;
mod state_disk;

pub use contents::Contents;
pub use cryptsetup::{Cryptsetup, CryptsetupError, CryptsetupProgram};
pub use device::{BlockDevice, FindStateDiskError, find_state_disk, list_block_devices};
pub use integrity::write_sectors_that_mkfs_reads;
pub use key::{DiskKey, EphemeralKey, MakeKeyError};
pub use known_state_disk::{KnownStateDisk, LoadKnownStateDiskError};
pub use mount::mount_state_disk;
pub use new_state_disk::{LoadNewStateDiskError, NewStateDisk};
pub use state_disk::{FormatError, OpenError, RekeyError, StateDisk};
