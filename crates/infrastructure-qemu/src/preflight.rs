//! What this machine must have before a node is started, each with how to get it.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use infrastructure::ClusterSpec;

use crate::folder::{ClusterRecord, RunFolder};
use crate::ports;
use crate::problem::PreflightProblem;
use crate::vm::forwards;

/// The file of an image folder that nodes boot from.
pub(crate) const SYSTEM_DISK: &str = "node.img";
/// Older ones emulate two to five times slower.
const MIN_QEMU: u32 = 10;
/// What a VM takes beside the guest's memory, in MiB.
const VM_OVERHEAD_MIB: u64 = 256;
/// What a node's state disk takes in the first hour, in MiB; it is sparse.
const NODE_DISK_MIB: u64 = 3072;

/// Firmware by folder: Debian and Ubuntu, Arch, Fedora.
const FIRMWARE: [(&str, &str, &str); 3] = [
    ("/usr/share/OVMF", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/x64", "OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf", "OVMF_CODE.fd", "OVMF_VARS.fd"),
];

/// What nodes are started with.
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

/// Checks programs, firmware, image, memory, disk space and ports, and collects what is missing.
pub(crate) fn check(
    spec: &ClusterSpec,
    record: &ClusterRecord,
    folder: &RunFolder,
    firmware: Option<&Path>,
) -> Result<Host, Vec<PreflightProblem>> {
    let mut problems = Problems::default();
    let qemu = problems.keep(find_qemu());
    let swtpm = problems.keep(find_program("swtpm", "install the Debian package swtpm"));
    let firmware = problems.keep(find_firmware(firmware));
    problems.keep(check_image(&spec.image));
    let stopped: Vec<_> = spec
        .nodes
        .iter()
        .filter(|node| !folder.node(&node.name).is_running())
        .collect();
    let memory = stopped
        .iter()
        .map(|node| u64::from(node.memory_mib) + VM_OVERHEAD_MIB)
        .sum();
    problems.keep(check_memory(memory, available_memory_mib()));
    problems.keep(check_space(stopped.len() as u64 * NODE_DISK_MIB, folder.path()));
    for node in stopped.into_iter().filter(|node| folder.node(&node.name).exists()) {
        let Some(known) = record.nodes.get(&node.name) else {
            continue;
        };
        for (port, there) in forwards(&known.ports) {
            problems.keep(check_port(port, &format!("port {there} of {}", node.name)));
        }
    }
    match (qemu, swtpm, firmware) {
        (Some(qemu), Some(swtpm), Some(firmware)) if problems.0.is_empty() => Ok(Host { qemu, swtpm, firmware }),
        _ => Err(problems.0),
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
    find_in_path(name).ok_or_else(|| problem(format!("program {name} is not in PATH"), remedy))
}

fn find_qemu() -> Result<PathBuf, PreflightProblem> {
    const REMEDY: &str = "install the Debian package qemu-system-x86 (on bookworm from backports: `apt install -t \
                          bookworm-backports qemu-system-x86`)";
    let qemu = find_program("qemu-system-x86_64", REMEDY)?;
    let output = Command::new(&qemu).arg("--version").output();
    let output = output.map_err(|error| problem(format!("{} cannot be run: {error}", qemu.display()), REMEDY))?;
    match parse_qemu_version(&output.stdout) {
        Some(version) if version >= MIN_QEMU => Ok(qemu),
        Some(version) => {
            let what = format!("{} is version {version}, at least {MIN_QEMU} is needed", qemu.display());
            Err(problem(what, REMEDY))
        }
        None => Err(problem(format!("{} does not tell its version", qemu.display()), REMEDY)),
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
        let what = || format!("{} does not hold {code} and {variables}", folder.display());
        return pair((folder, code, variables))
            .ok_or_else(|| problem(what(), "correct provider.qemu.firmware, or leave it out"));
    }
    FIRMWARE
        .iter()
        .find_map(|(folder, code, variables)| pair((Path::new(folder), code, variables)))
        .ok_or_else(|| {
            let what = format!("there is no firmware for VMs ({code} and {variables})");
            problem(what, "install the Debian package ovmf, or set provider.qemu.firmware")
        })
}

fn check_image(folder: &Path) -> Result<(), PreflightProblem> {
    let missing = [SYSTEM_DISK, "reference-values.json"]
        .into_iter()
        .find(|file| !folder.join(file).is_file());
    missing.map_or(Ok(()), |file| {
        let what = format!("the node image has no {file}: {}", folder.display());
        Err(problem(
            what,
            "set `image` to the folder that `cargo xtask image build` wrote",
        ))
    })
}

fn check_memory(needed_mib: u64, available_mib: Option<u64>) -> Result<(), PreflightProblem> {
    match available_mib {
        Some(available) if available < needed_mib => Err(problem(
            format!("the nodes need {needed_mib} MiB of memory, {available} MiB are available"),
            "end other programs, or set a smaller memoryMiB or initialCount",
        )),
        _ => Ok(()),
    }
}

/// `MemAvailable` of proc_meminfo(5): what programs can get without swapping.
fn available_memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
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
        "the nodes' disks need about {needed_mib} MiB, {available_mib} MiB are free at {}",
        existing.display()
    );
    Err(problem(what, "free some space, or use a workspace on another disk"))
}

fn check_port(port: u16, purpose: &str) -> Result<(), PreflightProblem> {
    if ports::is_free(port) {
        return Ok(());
    }
    let what = format!("port {port} of 127.0.0.1, which leads to {purpose}, is in use");
    Err(problem(
        what,
        "end the program that listens on it (`ss -ltnp`), or make the cluster anew",
    ))
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
    use std::net::TcpListener;

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
        let problem = check_memory(5000, Some(4000)).unwrap_err().to_string();
        for part in ["5000 MiB", "4000 MiB", "memoryMiB"] {
            assert!(problem.contains(part), "{problem}");
        }
        assert!(check_memory(4000, Some(4000)).is_ok());
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
    fn a_port_in_use_names_what_it_leads_to() {
        let held = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        let problem = check_port(port, "port 6443 of control-plane-0")
            .unwrap_err()
            .to_string();
        assert!(
            problem.contains(&port.to_string()) && problem.contains("6443"),
            "{problem}"
        );
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
