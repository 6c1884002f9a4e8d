//! The provider of a workspace, and what its machines should be.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Error, Result, anyhow};
use cluster_config::{Acceleration, ClusterConfig, ClusterState, MirrorSource, Workspace, names};
use infrastructure::{ClusterSpec, MachineStatus, Provider};
use infrastructure_qemu::{AccelerationChoice, Helper, QemuOptions, QemuProvider, RunFolder};

use crate::advice::advise;
use crate::arguments::Testing;

/// What to do when a machine stopped.
const STOPPED: &str = "look at the whole console in the workspace (constellation-qemu/nodes/*/console.log); the same command \
                       again makes the node anew";

/// The local provider with the options of a configuration.
pub(crate) fn provider(workspace: &Workspace, config: &ClusterConfig, testing: Testing) -> Result<QemuProvider> {
    let options = QemuOptions {
        acceleration: match config.qemu.acceleration {
            Acceleration::Auto => AccelerationChoice::Auto,
            Acceleration::Kvm => AccelerationChoice::Kvm,
            Acceleration::Software => AccelerationChoice::Software,
        },
        firmware: config.qemu.firmware.clone(),
        flushes: !testing.no_flushes,
    };
    Ok(QemuProvider::new(run_folder(workspace), helper()?, options))
}

/// The local provider for commands that start nothing and must work without a configuration.
pub(crate) fn bare_provider(workspace: &Workspace) -> Result<QemuProvider> {
    let options = QemuOptions {
        acceleration: AccelerationChoice::Software,
        firmware: None,
        flushes: true,
    };
    Ok(QemuProvider::new(run_folder(workspace), helper()?, options))
}

/// The machines that a configuration asks for.
pub(crate) fn spec(config: &ClusterConfig, state: &ClusterState) -> ClusterSpec {
    ClusterSpec {
        name: config.name.clone(),
        image: config.image.clone(),
        init_secret_hash: state.init_secret.hash(),
        mirror: match &config.mirror {
            MirrorSource::Folder(folder) => Some(folder.clone()),
            MirrorSource::Http(_) => None,
        },
        nodes: config.nodes(),
        members: state.members.clone(),
        later: BTreeSet::new(),
    }
}

/// An error if a machine stopped: with what its console says.
pub(crate) fn check_running(provider: &QemuProvider) -> Result<()> {
    for machine in provider.machines()? {
        if let MachineStatus::Stopped { reason, console } = machine.status {
            return Err(stopped(machine.name.as_str(), &reason, console));
        }
    }
    Ok(())
}

fn stopped(name: &str, reason: &str, console: Vec<String>) -> Error {
    advise(anyhow!("{name} stopped: {reason}"), console, STOPPED)
}

fn run_folder(workspace: &Workspace) -> RunFolder {
    RunFolder::new(workspace.path(names::QEMU))
}

fn helper() -> Result<Helper> {
    let program: PathBuf = std::env::current_exe().context("cannot find out where this program is")?;
    Ok(Helper::new(program))
}
