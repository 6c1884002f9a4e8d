//! Where things are on a node. The disk-mapper and the bootstrapper agree on these paths.

/// Folder in memory through which the programs of a node hand files to each other. Mode 0700.
pub const RUN_DIR: &str = "/run/constellation";

/// The ephemeral key of a new node: 32 bytes, mode 0400. Deleted when the disk has been re-keyed.
pub const EPHEMERAL_KEY: &str = "/run/constellation/state-disk.key";

/// The checked header of the open disk. Re-keying works on this copy and never reads the disk's.
pub const HEADER: &str = "/run/constellation/state-disk.header";

/// Name of the mapping.
pub const MAPPING: &str = "state";

/// The open disk.
pub const MAPPED_DEVICE: &str = "/dev/mapper/state";

/// Where its file system is mounted.
pub const MOUNT_POINT: &str = "/run/state";

/// Serial number of the disk that is meant to be the state disk.
pub const SERIAL: &str = "state";

/// Path of cryptsetup in the node image, from Debian's package cryptsetup-bin.
pub const CRYPTSETUP: &str = "/usr/sbin/cryptsetup";

/// Path of mkfs.ext4 in the node image, from Debian's package e2fsprogs.
pub const MKFS_EXT4: &str = "/usr/sbin/mkfs.ext4";
