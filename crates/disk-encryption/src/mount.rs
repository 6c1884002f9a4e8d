use std::fs;
use std::io;

use rustix::mount::{MountFlags, mount};

use crate::paths::{MAPPED_DEVICE, MOUNT_POINT};

/// Mounts the file system of the open state disk in its place.
///
/// # Errors
/// When the place cannot be made, or the kernel refuses the file system.
pub fn mount_state_disk() -> io::Result<()> {
    fs::create_dir_all(MOUNT_POINT)?;
    mount(MAPPED_DEVICE, MOUNT_POINT, "ext4", MountFlags::NOATIME, c"")?;
    Ok(())
}
