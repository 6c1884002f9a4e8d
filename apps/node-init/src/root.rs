//! The verified root file system.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

use crate::command_line::Root;
use crate::partitions::Partitions;

const NEW_ROOT: &str = "/sysroot";
const DMSETUP: &str = "/usr/sbin/dmsetup";
/// Size of a block of data and of the hash tree, in bytes.
const BLOCK: u64 = 4096;
/// Device mapper's unit of size, in bytes.
const SECTOR: u64 = 512;

/// The root file system could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenRootError {
    #[error("cannot start dmsetup")]
    StartDmsetup(#[source] io::Error),
    #[error("the kernel refused to open the root file system under dm-verity (dmsetup: {status}): {message}")]
    Verity { status: ExitStatus, message: String },
    #[error("cannot mount the verified root file system")]
    Mount(#[source] Errno),
    #[error("cannot leave the initramfs")]
    Switch(#[source] io::Error),
}

/// Mounts `/proc`, `/sys`, `/dev` and `/run`.
pub(crate) fn mount_kernel_file_systems() -> io::Result<()> {
    let no_programs = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let file_systems: [(&CStr, &str, MountFlags, Option<&CStr>); 4] = [
        (c"proc", "/proc", no_programs, None),
        (c"sysfs", "/sys", no_programs, None),
        (c"devtmpfs", "/dev", MountFlags::NOSUID, Some(c"mode=0755")),
        (
            c"tmpfs",
            "/run",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(c"mode=0755"),
        ),
    ];
    for (kind, target, flags, data) in file_systems {
        fs::create_dir_all(target)?;
        match mount(kind, target, kind, flags, data) {
            // The kernel may already have mounted its device file system.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Opens the root file system under dm-verity and mounts it.
///
/// The table is ours, and dmsetup loads it. veritysetup 2.7 cannot request a panic after a read error. Also, dmsetup is
/// smaller, needs neither OpenSSL nor libcryptsetup, and keeps ioctls out of our code.
pub(crate) fn open(root: &Root, partitions: &Partitions) -> Result<(), OpenRootError> {
    let output = Command::new(DMSETUP)
        .args(["create", "root", "--readonly", "--table"])
        .arg(table(root, partitions))
        // udev does not run yet, so nothing else would create the device node.
        .env("DM_DISABLE_UDEV", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(OpenRootError::StartDmsetup)?;
    if !output.status.success() {
        return Err(OpenRootError::Verity {
            status: output.status,
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    fs::create_dir_all(NEW_ROOT).map_err(OpenRootError::Switch)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    mount("/dev/mapper/root", NEW_ROOT, "erofs", flags, None).map_err(OpenRootError::Mount)
}

/// The table for device mapper (kernel documentation, "dm-verity").
///
/// A block that does not match panics the kernel, and so does one that cannot be read: a node must not continue with data that
/// the host has changed, or without data that the host hides.
fn table(root: &Root, partitions: &Partitions) -> String {
    let (data, hash_tree) = (partitions.root.display(), partitions.hash_tree.display());
    let (hash, salt, blocks) = (hex::encode(root.hash), hex::encode(root.salt), root.blocks);
    let sectors = blocks.saturating_mul(BLOCK / SECTOR);
    format!(
        "0 {sectors} verity 1 {data} {hash_tree} {BLOCK} {BLOCK} {blocks} 0 sha256 {hash} {salt} \
         2 panic_on_corruption panic_on_error"
    )
}

/// Makes the mounted file system the root, and frees the memory of the initramfs.
pub(crate) fn switch() -> Result<(), OpenRootError> {
    let switch = || -> io::Result<()> {
        for moved in ["dev", "proc", "sys", "run"] {
            mount_move(Path::new("/").join(moved), Path::new(NEW_ROOT).join(moved))?;
        }
        for left in ["/init", "/modules", "/usr"] {
            remove(Path::new(left))?;
        }
        rustix::process::chdir(NEW_ROOT)?;
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")?;
        Ok(())
    };
    switch().map_err(OpenRootError::Switch)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_ends_the_machine_on_changed_and_on_unreadable_blocks() {
        let root = Root {
            hash: [1; 32],
            salt: [2; 32],
            blocks: 77,
        };
        let partitions = Partitions {
            root: "/dev/vda2".into(),
            hash_tree: "/dev/vda3".into(),
        };
        let (hash, salt) = ("01".repeat(32), "02".repeat(32));
        assert_eq!(
            table(&root, &partitions),
            format!(
                "0 616 verity 1 /dev/vda2 /dev/vda3 4096 4096 77 0 sha256 {hash} {salt} \
                 2 panic_on_corruption panic_on_error"
            )
        );
    }
}
