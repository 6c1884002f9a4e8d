//! The state disk, which holds everything that a node writes.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount_bind, mount_remount};

const DISK_MAPPER: &str = "/usr/bin/disk-mapper";
const STATE: &str = "/run/state";
const MACHINE_ID: &str = "/run/state/machine-id";

/// Folders of the system that are on the state disk: name there, mode, place in the tree.
const WRITABLE: [(&str, u32, &str); 4] = [
    ("var", 0o755, "/var"),
    ("kubernetes", 0o755, "/etc/kubernetes"),
    ("etccni", 0o755, "/etc/cni"),
    ("opt", 0o755, "/opt"),
];

/// The state disk could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareStateError {
    #[error("cannot start disk-mapper")]
    StartDiskMapper(#[source] io::Error),
    #[error("the state disk was not opened ({0}); a line before says why")]
    DiskMapper(ExitStatus),
    #[error("disk-mapper did not mount a state disk at {STATE}")]
    NotMounted,
    #[error("cannot read or write the state disk")]
    Folders(#[from] io::Error),
}

/// Runs the disk-mapper with the console as its output. It returns when the state disk is mounted.
pub(crate) fn run_disk_mapper() -> Result<(), PrepareStateError> {
    let status = Command::new(DISK_MAPPER)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin")
        // udev does not run yet, so nothing would answer libdevmapper's cookies.
        .env("DM_DISABLE_UDEV", "1")
        .stdin(Stdio::null())
        .status()
        .map_err(PrepareStateError::StartDiskMapper)?;
    if !status.success() {
        return Err(PrepareStateError::DiskMapper(status));
    }
    match is_mount_point(Path::new(STATE))? {
        true => Ok(()),
        false => Err(PrepareStateError::NotMounted),
    }
}

/// Mounts the writable folders over their places in the read-only root, and gives the machine its id.
pub(crate) fn mount_writable_folders() -> Result<(), PrepareStateError> {
    for (name, mode, place) in WRITABLE {
        let folder = Path::new(STATE).join(name);
        fs::DirBuilder::new().recursive(true).mode(mode).create(&folder)?;
        mount_bind(&folder, place).map_err(io::Error::from)?;
    }
    write_machine_id()?;
    mount_bind(MACHINE_ID, "/etc/machine-id").map_err(io::Error::from)?;
    mount_remount("/etc/machine-id", MountFlags::BIND | MountFlags::RDONLY, c"").map_err(io::Error::from)?;
    Ok(())
}

/// A random id on the first boot, which stays the same afterwards (machine-id(5)).
///
/// Otherwise systemd would take one from the host: the UUID of the virtual machine.
fn write_machine_id() -> io::Result<()> {
    if fs::read_to_string(MACHINE_ID).is_ok_and(|id| is_machine_id(&id)) {
        return Ok(());
    }
    let mut id = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut id)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        // Root may have put a link there in an earlier boot.
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .mode(0o444)
        .open(MACHINE_ID)?;
    writeln!(file, "{}", uuid::Builder::from_random_bytes(id).into_uuid().simple())?;
    file.sync_all()
}

fn is_machine_id(text: &str) -> bool {
    let id = text.trim_end();
    id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().expect("the state folder has a parent");
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.dev() != fs::metadata(parent)?.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_id_is_32_lower_case_hex_digits() {
        assert!(is_machine_id("0123456789abcdef0123456789abcdef\n"));
        assert!(!is_machine_id(""));
        assert!(!is_machine_id("0123456789ABCDEF0123456789abcdef\n"));
        assert!(!is_machine_id("0123"));
    }

    #[test]
    fn missing_folder_is_no_mount_point() {
        assert!(!is_mount_point(Path::new("/nonexistent-state/x")).unwrap_or(false));
        assert!(is_mount_point(Path::new("/proc")).unwrap());
    }
}
