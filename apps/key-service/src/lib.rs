//! The KeyService: derives the keys of a cluster from its master secret, and releases them to nodes that prove what they run.
//!
//! It believes nobody inside the cluster. A caller brings the Evidence of a node, over a nonce that was drawn here, and the operator's
//! signed policy; the key service appraises the one by the other itself. What it releases is sealed to a key that the Evidence covers, so
//! that the caller learns nothing. An audit record is on the disk before anything leaves. The master secret is read from the encrypted
//! state disk once, at the start, and no Kubernetes object holds it.
//!
//! It has no rights in Kubernetes, and serves its API on a Unix socket of its control plane only; probes and metrics are on TCP.

mod audit;
mod nonces;
mod policy;
mod request;
mod server;
mod service;
mod shared_files;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use attestation::Variants;
use audit_log::{AuditLog, Limits};
use clap::Parser;
use cluster_policy::PolicyStore;
use key_derivation::MasterSecret;
use prometheus_client::registry::Registry;
use service_runtime::{RuntimeArgs, start, start_logging};
use tracing::info;
use zeroize::Zeroizing;

use crate::policy::PolicyGate;
use crate::service::KeyService;
use crate::shared_files::SharedFiles;

#[derive(Parser)]
#[command(version, about = "Releases keys to nodes that prove what they run")]
struct Args {
    /// Unix socket on which the join service connects.
    #[arg(long, default_value = "/run/constellation/key-service/socket")]
    socket: PathBuf,
    /// File with the master secret, on the encrypted state disk.
    #[arg(long, default_value = "/run/constellation/master-secret.json")]
    master_secret: PathBuf,
    /// File with the newest cluster policy by which keys were released here, on the encrypted state disk.
    #[arg(long, default_value = "/run/constellation/key-policy/cluster-policy")]
    policy_store: PathBuf,
    /// Folder with the files that control planes share, on the encrypted state disk.
    #[arg(long, default_value = "/run/constellation/shared-files")]
    shared_files: PathBuf,
    /// File in which every release is recorded before anything leaves. It is rotated by size.
    #[arg(long, default_value = "/var/log/constellation/key-audit.log")]
    audit_log: PathBuf,
    /// File in which it is recorded which attested nodes were refused, so that they push no release out of the other one.
    #[arg(long, default_value = "/var/log/constellation/key-refused.log")]
    refused_log: PathBuf,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Runs the service until it is told to end.
///
/// # Errors
/// When an argument is of no use, or the service cannot go on.
pub async fn run(variants: &'static dyn Variants) -> Result<()> {
    start_logging();
    let args = Args::parse();
    let mut metrics = Registry::default();
    let master_secret = load_master_secret(&args.master_secret)?;
    let open = |flag: &str, log: &Path| {
        AuditLog::open(log, Limits::default()).with_context(|| format!("{flag}: cannot use {}", log.display()))
    };
    let audit = open("--audit-log", &args.audit_log)?;
    let refused = open("--refused-log", &args.refused_log)?;
    let gate = PolicyGate::new(&master_secret, variants, PolicyStore::new(args.policy_store));
    let shared_files = SharedFiles::open(args.shared_files).context("--shared-files")?;
    let service = KeyService::new(master_secret, gate, shared_files, audit, refused, &mut metrics);
    let runtime = start(args.runtime, metrics).await?;
    // Its folder has the group of the join service's user, which a new socket inherits.
    let listener = unix_grpc::listen("--socket", &args.socket, 0o660)?;
    runtime.ready().await;
    info!(socket = %args.socket.display(), "key service ready");
    server::serve(service, listener, runtime.draining()).await
}

fn load_master_secret(path: &Path) -> Result<MasterSecret> {
    let name = path.display();
    let json = Zeroizing::new(std::fs::read(path).with_context(|| format!("--master-secret: cannot read {name}"))?);
    MasterSecret::parse(&json).with_context(|| format!("--master-secret: cannot use {name}"))
}
