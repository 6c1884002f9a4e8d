//! What this machine must have before a node is started, and how to get it.

use std::env;
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use error_report::explain_denied;
use infrastructure::{ClusterSpec, NodeSpec};

use crate::accelerator::Accelerator;
use crate::error::QemuError;
use crate::folder::RunFolder;
use crate::memory::{self, Available};
use crate::monitor::{Pause, pause};
use crate::problem::PreflightProblem;

/// The file of an image folder that nodes boot from.
pub(crate) const SYSTEM_DISK: &str = "node.img";
/// Older ones emulate two to five times slower.
const MIN_QEMU: u32 = 10;
/// What a VM needs besides the guest's memory, in MiB.
const VM_OVERHEAD_MIB: u64 = 256;
/// What a node's sparse state disk takes in the first hour, in MiB.
const NODE_DISK_MIB: u64 = 3072;
/// What must be free before a node that ran out of space goes on, so that it does not stop again at once, in MiB.
const PAUSED_NODE_DISK_MIB: u64 = 256;

/// Firmware by folder: Debian and Ubuntu, Arch, Fedora.
const FIRMWARE: [(&str, &str, &str); 3] = [
    ("/usr/share/OVMF", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/x64", "OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf", "OVMF_CODE.fd", "OVMF_VARS.fd"),
];

/// The programs and firmware that nodes are started with.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) qemu: PathBuf,
    pub(crate) swtpm: PathBuf,
    pub(crate) firmware: Firmware,
}

#[derive(Clone, Debug)]
pub(crate) struct Firmware {
    pub(crate) code: PathBuf,
    pub(crate) variables: PathBuf,
}

/// Checks programs, firmware, image, memory and disk space, and collects what is missing.
pub(crate) fn check(
    spec: &ClusterSpec,
    folder: &RunFolder,
    firmware: Option<&Path>,
    probe: impl FnOnce(&Path) -> Result<Accelerator, QemuError>,
) -> Result<(Host, Accelerator), QemuError> {
    let mut problems = Problems::default();
    let qemu = problems.keep(find_qemu());
    let accelerator = qemu.as_deref().map(probe);
    let swtpm = problems.keep(find_program("swtpm", "install the Debian package swtpm"));
    let firmware = problems.keep(find_firmware(firmware));
    problems.keep(check_image(&spec.image));
    let mut stopped = Vec::new();
    let mut disks_mib = 0;
    for node in &spec.nodes {
        let folder = folder.node(&node.name);
        if !folder.is_running()? {
            stopped.push(node);
            disks_mib += NODE_DISK_MIB;
        } else if pause(&folder) == Some(Pause::DiskFull) {
            disks_mib += PAUSED_NODE_DISK_MIB;
        }
    }
    if let Some(Ok(accelerator)) = accelerator {
        problems.keep(check_memory(&stopped, accelerator, memory::available()));
    }
    problems.keep(check_space(disks_mib, folder.path()));
    match (qemu, accelerator, swtpm, firmware) {
        (Some(qemu), Some(accelerator), Some(swtpm), Some(firmware)) if problems.0.is_empty() => {
            Ok((Host { qemu, swtpm, firmware }, accelerator?))
        }
        _ => Err(QemuError::Preflight(problems.0)),
    }
}

/// Where a program is, if it is in `PATH`.
fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn find_program(name: &str, remedy: &str) -> Result<PathBuf, PreflightProblem> {
    find_in_path(name).ok_or_else(|| problem(format!("{name} is not in PATH"), remedy))
}

fn find_qemu() -> Result<PathBuf, PreflightProblem> {
    const REMEDY: &str = "install the Debian package qemu-system-x86 (on bookworm from backports: `apt install -t \
                          bookworm-backports qemu-system-x86`)";
    let qemu = find_program("qemu-system-x86_64", REMEDY)?;
    let output = Command::new(&qemu).arg("--version").output();
    let output = output.map_err(|error| problem(format!("cannot run {}: {error}", qemu.display()), REMEDY))?;
    match parse_qemu_version(&output.stdout) {
        Some(version) if version >= MIN_QEMU => Ok(qemu),
        Some(version) => {
            let what = format!(
                "{} is version {version}, but {MIN_QEMU} or newer is required",
                qemu.display()
            );
            Err(problem(what, REMEDY))
        }
        None => Err(problem(
            format!("{} does not report its version", qemu.display()),
            REMEDY,
        )),
    }
}

/// The major version in `QEMU emulator version 10.0.2 (Debian ...)`.
fn parse_qemu_version(output: &[u8]) -> Option<u32> {
    let text = str::from_utf8(output).ok()?;
    let (_, version) = text.split_once("version ")?;
    version.split('.').next()?.parse().ok()
}

fn find_firmware(configured: Option<&Path>) -> Result<Firmware, PreflightProblem> {
    let pair = |(folder, code, variables): (&Path, &str, &str)| {
        let firmware = Firmware {
            code: folder.join(code),
            variables: folder.join(variables),
        };
        (firmware.code.is_file() && firmware.variables.is_file()).then_some(firmware)
    };
    let (_, code, variables) = FIRMWARE[0];
    if let Some(folder) = configured {
        let what = || format!("{} does not contain {code} and {variables}", folder.display());
        return pair((folder, code, variables))
            .ok_or_else(|| problem(what(), "correct provider.qemu.firmware, or remove it"));
    }
    FIRMWARE
        .iter()
        .find_map(|(folder, code, variables)| pair((Path::new(folder), code, variables)))
        .ok_or_else(|| {
            let what = format!("cannot find the firmware for VMs ({code} and {variables})");
            problem(what, "install the Debian package ovmf, or set provider.qemu.firmware")
        })
}

fn check_image(folder: &Path) -> Result<(), PreflightProblem> {
    const REMEDY: &str = "set `image` to the folder that `cargo xtask image build` wrote";
    for file in [SYSTEM_DISK, "reference-values.json"] {
        let path = folder.join(file);
        match File::open(&path) {
            Ok(_) if path.is_file() => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let what = format!("cannot read the node image: {}", explain_denied(&path, error));
                return Err(problem(what, "then run the same command again"));
            }
            _ => {
                let what = format!("the node image has no {file}: {}", folder.display());
                return Err(problem(what, REMEDY));
            }
        }
    }
    Ok(())
}

fn check_memory(
    nodes: &[&NodeSpec],
    accelerator: Accelerator,
    available: Option<Available>,
) -> Result<(), PreflightProblem> {
    let beside = VM_OVERHEAD_MIB + accelerator.memory_mib();
    let needed: u64 = nodes.iter().map(|node| u64::from(node.memory_mib) + beside).sum();
    let Some(available) = available.filter(|available| available.mib < needed) else {
        return Ok(());
    };
    let what = format!(
        "the nodes need {needed} MiB of memory (including {beside} MiB of overhead per machine with {accelerator}), but only {} MiB are \
         available",
        available.mib
    );
    Err(match available.limited_by {
        None => problem(what, "close other programs, or set a smaller memoryMiB or initialCount"),
        Some(group) => problem(
            format!("{what} in the control group {}", group.display()),
            "raise its limit (MemoryMax of the unit or session), or set a smaller memoryMiB or initialCount",
        ),
    })
}

fn check_space(needed_mib: u64, folder: &Path) -> Result<(), PreflightProblem> {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let Ok(stat) = rustix::fs::statvfs(existing) else {
        return Ok(());
    };
    let available_mib = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
    if available_mib >= needed_mib {
        return Ok(());
    }
    let what = format!(
        "the nodes' disks need about {needed_mib} MiB, but only {available_mib} MiB are free at {}",
        existing.display()
    );
    Err(problem(what, "free some space, or use a workspace on another disk"))
}

fn problem(what: impl Into<String>, remedy: impl Into<String>) -> PreflightProblem {
    PreflightProblem {
        what: what.into(),
        remedy: remedy.into(),
    }
}

#[derive(Default)]
struct Problems(Vec<PreflightProblem>);

impl Problems {
    fn keep<T>(&mut self, result: Result<T, PreflightProblem>) -> Option<T> {
        result.map_err(|problem| self.0.push(problem)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_of_qemu() {
        let debian = b"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(parse_qemu_version(debian), Some(10));
        assert_eq!(parse_qemu_version(b"QEMU emulator version 7.2.19"), Some(7));
        assert_eq!(parse_qemu_version(b"something else"), None);
    }

    #[test]
    fn too_little_memory_names_both_numbers_and_the_way_out() {
        let check = |accelerator, mib, group: Option<&str>| {
            let nodes = [node(3072), node(2048)];
            let available = Available {
                mib,
                limited_by: group.map(PathBuf::from),
            };
            check_memory(&nodes.each_ref(), accelerator, Some(available)).map_err(|problem| problem.to_string())
        };
        let problem = check(Accelerator::Kvm, 4000, None).unwrap_err();
        for part in ["5632 MiB", "4000 MiB", "memoryMiB"] {
            assert!(problem.contains(part), "{problem}");
        }
        check(Accelerator::Kvm, 5632, None).unwrap();
        // Each emulated machine has its translated code beside it.
        let problem = check(Accelerator::Software, 9727, None).unwrap_err();
        assert!(problem.contains("9728 MiB"), "{problem}");
        check(Accelerator::Software, 9728, None).unwrap();
        // MemoryMax=3G
        let problem = check(Accelerator::Kvm, 3000, Some("/sys/fs/cgroup/a")).unwrap_err();
        for part in ["5632 MiB", "3000 MiB", "/sys/fs/cgroup/a", "MemoryMax"] {
            assert!(problem.contains(part), "{problem}");
        }
    }

    fn node(memory_mib: u32) -> NodeSpec {
        NodeSpec {
            name: "worker-0".parse().unwrap(),
            role: cluster_types::NodeRole::Worker,
            group: String::new(),
            vcpus: 2,
            memory_mib,
            state_disk_gb: 20,
        }
    }

    #[test]
    fn too_little_space_names_the_place() {
        let problem = check_space(u64::MAX >> 20, Path::new("/nonexistent/run"))
            .unwrap_err()
            .to_string();
        assert!(problem.contains("free at /"), "{problem}");
        assert!(check_space(0, Path::new("/")).is_ok());
    }

    #[test]
    fn an_image_without_reference_values_is_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(SYSTEM_DISK), "").unwrap();
        let problem = check_image(folder.path()).unwrap_err().to_string();
        assert!(problem.contains("reference-values.json"), "{problem}");
    }

    #[test]
    fn configured_firmware_is_not_replaced_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let problem = find_firmware(Some(folder.path())).unwrap_err().to_string();
        assert!(problem.contains("provider.qemu.firmware"), "{problem}");
    }
}
