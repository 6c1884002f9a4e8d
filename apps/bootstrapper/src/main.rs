//! Makes a node part of a cluster. systemd starts it; by then the root file system is verified and the state disk is open. On a node that was part
//! of one before a reboot, the disk-mapper starts it first, to open that disk with the cluster's or the operator's help.
//!
//! A new node offers the init API to the CLI and asks join services for a ticket, side by side; whichever comes first takes
//! the node lock. On a node that was a member before, it starts the kubelet. The first node goes on to deploy what its image runs in the
//! cluster.
//!
//! # Invariants
//!
//! - The membership is measured once per boot, before the disk gets one of the cluster's keys, or, when a member comes back,
//!   before anything on its disk is read.
//! - Nothing that metadata says is believed: names, roles and addresses are requests, and what mirrors deliver is pinned by hashes.
//! - A node that failed half-way powers off. It never stays reachable and never tries another cluster.

mod deploy;
mod disk;
mod early_network;
mod events;
mod files;
mod init;
mod init_server;
mod join;
mod journal;
mod lock;
mod network;
mod node;
mod rejoin;
mod repeated;
mod request;
mod resume;
mod run;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use attestation::{AttesterSource, MeasuringAttester, Variants};
use attestation_variants::ReleaseVariants;
use clap::{Parser, Subcommand};
use cloud_metadata::{BASE_ADDRESS_FILE, QemuMetadata};
use cluster_types::Service;
use error_report::Chain;
use kubeadm::OwnApiServer;
use programs::{Call, HostPrograms, Programs};
use tokio::sync::OnceCell;
use tracing::{error, info};

use crate::deploy::{InCluster, keep_deployed};
use crate::disk::{ClosedLuksDisk, LuksStateDisk};
use crate::early_network::EarlyNetwork;
use crate::files::NodeFiles;
use crate::lock::NodeLock;
use crate::node::{Hints, ThisNode, image_version, platform_mirror};
use crate::rejoin::rejoin;
use crate::resume::{MemberNode, resume};
use crate::run::{Boot, boot, bootstrap};

const ROOT: &str = "/";

/// Makes this machine part of a cluster.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address on which the CLI reaches this node.
    #[arg(long, default_value = "0.0.0.0:9000")]
    address: SocketAddr,
    /// File with the base address of the platform's metadata.
    #[arg(long, default_value = BASE_ADDRESS_FILE)]
    metadata: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Opens the state disk of a node that was a member before a reboot. The disk-mapper starts this, before systemd.
    Rejoin,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    service_runtime::start_logging();
    match arguments.command {
        Some(Command::Rejoin) => ended(open_state_disk(&arguments).await, "node cannot come back"),
        None => {
            let code = ended(start(&arguments).await, "node failed, powering off");
            if code == ExitCode::FAILURE {
                power_off().await;
            }
            code
        }
    }
}

fn ended(result: Result<()>, failed: &str) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(error = %Chain(failure.as_ref()), "{failed}");
            ExitCode::FAILURE
        }
    }
}

async fn start(arguments: &Arguments) -> Result<()> {
    service_runtime::forbid_core_dumps()?;
    info!(image = image_version(Path::new(ROOT)), "bootstrapper started");
    let attester = ReleaseVariants.attester(&AttesterSource::ThisMachine)?;
    let (files, identity) = (files(), attester.identity());
    let programs: Arc<dyn Programs> = Arc::new(HostPrograms);
    match boot(&*attester)? {
        Boot::Member => {
            let member = MemberNode {
                attester: &*attester,
                files: &files,
                programs: &programs,
                deployer: &InCluster,
                platform_mirror: platform_mirror(&metadata(arguments)?),
            };
            resume(&member).await?;
        }
        Boot::New => {
            let node = Arc::new(this_node(arguments, attester).await?);
            let listener = service_runtime::listen("--address", arguments.address).await?;
            bootstrap(node, listener).await?;
        }
    }
    if files.load_state().is_ok_and(|state| state.deploys().is_some()) {
        match keep_deployed(&files, identity, &InCluster).await {}
    }
    Ok(())
}

async fn open_state_disk(arguments: &Arguments) -> Result<()> {
    service_runtime::forbid_core_dumps()?;
    let programs = &HostPrograms;
    let disk = Arc::new(ClosedLuksDisk::find()?);
    let network = EarlyNetwork::start(programs).await?;
    let attester = ReleaseVariants.attester(&AttesterSource::ThisMachine)?;
    let node = this_node(arguments, attester).await?;
    let hints = &node.hints;
    let address = hints.this_node.address.ip();
    network.reach_nodes(programs, address, &hints.network).await?;
    let listener = service_runtime::listen("--address", arguments.address).await?;
    rejoin(&node, disk, listener).await?;
    Ok(network.stop(programs).await?)
}

fn metadata(arguments: &Arguments) -> Result<QemuMetadata> {
    QemuMetadata::find(&arguments.metadata).context("finding metadata")
}

fn files() -> NodeFiles {
    NodeFiles::new(ROOT, Service::user)
}

async fn this_node(arguments: &Arguments, attester: Arc<dyn MeasuringAttester>) -> Result<ThisNode> {
    let metadata = Arc::new(metadata(arguments)?);
    Ok(ThisNode {
        hints: Hints::fetch(&*metadata).await,
        metadata,
        lock: NodeLock::new(attester.clone()),
        attester,
        variants: &ReleaseVariants,
        disk: Arc::new(LuksStateDisk),
        deployer: Arc::new(InCluster),
        files: files(),
        programs: Arc::new(HostPrograms),
        api_server: Arc::new(OwnApiServer),
        own_images: OnceCell::new(),
        reach: Box::new(SocketAddr::V4),
    })
}

/// The reason is on the console by now, so nothing is lost.
async fn power_off() {
    if let Err(failure) = HostPrograms.run(&Call::new("systemctl").arg("poweroff")).await {
        error!(error = %Chain(&failure), "cannot power off");
    }
}

#[cfg(test)]
mod input {
    use super::*;

    #[test]
    fn bad_input_to_each_flag_gives_one_error_that_names_it() {
        for (arguments, flag, reason) in [
            (&["--address", "9000"][..], "--address", "socket address"),
            (&["--address", "node:9000"], "--address", "socket address"),
            (&["--metadata", ""], "--metadata", "value is required"),
            (&["--metadata"], "--metadata", "value is required"),
            (&["--verbose"], "--verbose", "unexpected"),
            (&["now"], "now", "unrecognized"),
            (&["rejoin", "now"], "now", "unexpected"),
        ] {
            let error = Arguments::try_parse_from([&["bootstrapper"], arguments].concat())
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(flag) && error.contains(reason), "{error}");
        }
    }
}
