//! The machine, as its first program finds it.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use disk_encryption::list_block_devices;
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// Mounts what every Linux has and loads the modules in the order of their names.
pub(crate) fn set_up() -> Result<()> {
    for (kind, path) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
    ] {
        mount(kind, path, kind, MountFlags::empty(), c"").with_context(|| format!("{path} cannot be mounted"))?;
    }
    let mut modules: Vec<PathBuf> = fs::read_dir("/modules")?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    modules.sort();
    for module in modules {
        let file = File::open(&module)?;
        finit_module(&file, c"", 0).with_context(|| format!("{} cannot be loaded", module.display()))?;
    }
    Ok(())
}

/// Which part of the story this boot is.
pub(crate) fn chapter() -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace()
        .find_map(|word| word.strip_prefix("chapter="))
        .map(str::to_owned)
}

/// Device node of the disk with this serial number.
pub(crate) fn disk(serial: &str) -> Result<PathBuf> {
    let devices = list_block_devices(Path::new("/sys/block"))?;
    let device = devices.iter().find(|device| device.serial == serial);
    Ok(device.with_context(|| format!("no disk {serial}"))?.path())
}

/// Mounts an ext4.
pub(crate) fn mount_ext4(device: &str, path: &str) -> Result<()> {
    fs::create_dir_all(path)?;
    mount(device, path, "ext4", MountFlags::empty(), c"").with_context(|| format!("{device} cannot be mounted"))
}

pub(crate) fn unmount_all(path: &str) -> Result<()> {
    unmount(path, UnmountFlags::empty()).with_context(|| format!("{path} cannot be unmounted"))
}

/// Lines of the kernel's log that contain a word.
pub(crate) fn kernel_log_lines_with(word: &str) -> Result<Vec<String>> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits())?;
    let mut log = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg")?;
    let mut lines = Vec::new();
    let mut record = vec![0; 8192];
    // One record per read; at the end there is nothing to wait for.
    while let Ok(length) = log.read(&mut record) {
        let line = String::from_utf8_lossy(&record[..length]).into_owned();
        if line.contains(word) {
            lines.push(line);
        }
    }
    Ok(lines)
}

/// Switches the machine off at once: nothing is written back, as when the host pulls the plug.
pub(crate) fn power_off() -> ! {
    let _ = reboot(RebootCommand::PowerOff);
    loop {
        std::thread::park();
    }
}
