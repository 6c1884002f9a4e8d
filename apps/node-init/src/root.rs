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
const VERITYSETUP: &str = "/usr/sbin/veritysetup";

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenRootError {
    #[error("veritysetup cannot be started")]
    StartVeritysetup(#[source] io::Error),
    #[error(
        "root file system does not match the root hash, or its hash tree is damaged (veritysetup: {status}): {message}"
    )]
    Verity { status: ExitStatus, message: String },
    #[error("verified root file system cannot be mounted")]
    Mount(#[source] Errno),
    #[error("initramfs cannot be left")]
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
            // The kernel may have mounted its device file system itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Opens the root file system under dm-verity and mounts it.
///
/// A block that does not match panics the kernel: a node must not go on with what the host has changed.
pub(crate) fn open(root: &Root, partitions: &Partitions) -> Result<(), OpenRootError> {
    let output = Command::new(VERITYSETUP)
        .args(["open", "--no-superblock", "--format=1", "--hash=sha256"])
        .args(["--data-block-size=4096", "--hash-block-size=4096"])
        .arg(format!("--data-blocks={}", root.blocks))
        .arg(format!("--salt={}", hex::encode(root.salt)))
        .arg("--panic-on-corruption")
        .arg(&partitions.root)
        .arg("root")
        .arg(&partitions.hash_tree)
        .arg(hex::encode(root.hash))
        .env("DM_DISABLE_UDEV", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(OpenRootError::StartVeritysetup)?;
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

/// Makes the mounted file system the root of everything, and frees the memory of the initramfs.
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
