//! One node's machine: its folder and its two processes.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use cluster_types::NodeName;
use infrastructure::{Machine, MachineStatus};

use crate::accelerator::Accelerator;
use crate::console::{reason, tail};
use crate::error::{Context, QemuError};
use crate::folder::{ClusterRecord, NodeFolder, NodeRecord, is_running};
use crate::monitor::{Pause, pause};
use crate::preflight::{Host, SYSTEM_DISK};
use crate::process::{Helper, INTERVAL, ended, not_ready};
use crate::vm::{Vm, swtpm_arguments};

/// How long a program may take until it can be talked to.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Lines of a console that are worth showing.
const CONSOLE_LINES: usize = 12;
pub(crate) const GB: u64 = 1_000_000_000;

/// What all machines of one run have in common.
pub(crate) struct Starter<'a> {
    pub(crate) helper: &'a Helper,
    pub(crate) lock: &'a File,
    pub(crate) host: &'a Host,
    pub(crate) image: &'a Path,
    pub(crate) accelerator: Accelerator,
    pub(crate) flushes: bool,
}

impl Starter<'_> {
    /// Starts a node that does not run, with its disk if it has one.
    ///
    /// 1. What is left of an earlier start is ended.
    /// 2. The node gets its folder, if it has none.
    /// 3. The firmware's variables are fresh at every start: nothing that was written there counts.
    /// 4. The TPM is started, and then the machine.
    pub(crate) fn start(&self, cluster: &ClusterRecord, name: &NodeName, folder: &NodeFolder) -> Result<(), QemuError> {
        let node = &cluster.nodes[name];
        folder.stop()?;
        if !folder.exists() {
            folder.create(u64::from(node.spec.state_disk_gb) * GB)?;
        }
        let variables = folder.file(NodeFolder::VARIABLES);
        remove_if_there(&variables)?;
        fs::copy(&self.host.firmware.variables, &variables).on("copy the firmware's variables to", &variables)?;
        let writable = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&variables, writable).on("change the mode of", &variables)?;
        self.start_tpm(folder)?;
        self.start_qemu(cluster, node, folder)
    }

    fn start_tpm(&self, folder: &NodeFolder) -> Result<(), QemuError> {
        let socket = folder.file(NodeFolder::TPM_SOCKET);
        remove_if_there(&socket)?;
        let (record, log) = (folder.swtpm_record(), folder.file("swtpm.log"));
        let program = self.host.swtpm.as_os_str();
        self.helper
            .start(self.lock, folder.path(), &record, &log, program, &swtpm_arguments())?;
        until_ready(&record, &log, program, || socket.exists())
    }

    fn start_qemu(&self, cluster: &ClusterRecord, node: &NodeRecord, folder: &NodeFolder) -> Result<(), QemuError> {
        let vm = Vm {
            node,
            uid: &cluster.uid,
            private_network_port: cluster.private_network_port,
            metadata_port: cluster.metadata_port,
            accelerator: self.accelerator,
            firmware: &self.host.firmware.code,
            system_disk: &self.image.join(SYSTEM_DISK),
            flushes: self.flushes,
        };
        let pid = folder.file(NodeFolder::QEMU_PID);
        remove_if_there(&pid)?;
        remove_if_there(&folder.file(NodeFolder::QMP_SOCKET))?;
        let (record, log) = (folder.qemu_record(), folder.file("qemu.log"));
        let program = self.host.qemu.as_os_str();
        self.helper
            .start(self.lock, folder.path(), &record, &log, program, &vm.arguments())?;
        // QEMU writes its process id once all devices are there and all ports are taken.
        until_ready(&record, &log, program, || pid.exists())
    }
}

/// Waits for a condition for as long as the process runs.
pub(crate) fn until_ready(
    record: &Path,
    log: &Path,
    program: &std::ffi::OsStr,
    ready: impl Fn() -> bool,
) -> Result<(), QemuError> {
    let deadline = Instant::now() + READY_LIMIT;
    while !ready() {
        let running = is_running(record)?;
        // It may have become ready and ended between the two looks; what it said tells more than its end.
        if !running && !ready() {
            return Err(ended(program, log));
        }
        if Instant::now() > deadline {
            return Err(not_ready(program, READY_LIMIT));
        }
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}

/// A machine as others see it.
pub(crate) fn machine(node: &NodeRecord, folder: &NodeFolder) -> Machine {
    Machine {
        name: node.spec.name.clone(),
        role: node.spec.role,
        address: node.address,
        host: "127.0.0.1".to_owned(),
        ports: node.ports,
        start: folder.start(),
        status: status(folder),
    }
}

fn status(folder: &NodeFolder) -> MachineStatus {
    match folder.is_running() {
        Ok(true) => {
            return pause(folder).map_or(MachineStatus::Running, |pause| MachineStatus::Paused {
                reason: explain(&pause, folder),
            });
        }
        Ok(false) => {}
        Err(_) => return MachineStatus::Unknown,
    }
    if !folder.exists() {
        return MachineStatus::NotMade;
    }
    let path = folder.file(NodeFolder::CONSOLE);
    // Who ended QEMU is a better reason than what the node said before; a warning of QEMU is not.
    let qemu = reason(&folder.file("qemu.log"));
    let killed = qemu.clone().filter(|line| line.contains("terminating on signal"));
    let said = killed.or_else(|| reason(&path)).or(qemu);
    MachineStatus::Stopped {
        reason: said.unwrap_or_else(|| "it printed no message".to_owned()),
        console: console(folder),
    }
}

fn explain(pause: &Pause, folder: &NodeFolder) -> String {
    match pause {
        Pause::DiskFull => format!(
            "the disk that holds {} is full; free space there, then run `constellation apply`",
            folder.path().display()
        ),
        Pause::Other(state) => format!("QEMU reports {state}; `constellation apply` tries to let the machine go on"),
    }
}

/// The last lines of a node's console.
pub(crate) fn console(folder: &NodeFolder) -> Vec<String> {
    tail(&folder.file(NodeFolder::CONSOLE), CONSOLE_LINES)
}

fn remove_if_there(path: &Path) -> Result<(), QemuError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("remove", path),
        _ => Ok(()),
    }
}
