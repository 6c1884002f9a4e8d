//! The KeyService: hands out keys derived from the master secret to authenticated callers inside the cluster.
//!
//! Every caller presents a service-account token that was issued for this service, and [`policy`] says which keys it may
//! have. An audit record is on the disk before a key leaves; if it cannot be written, no key leaves. The master secret is
//! read from the encrypted state disk once, at the start, and no Kubernetes object holds it.

mod audit;
mod policy;
mod request;
mod server;
mod service;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use cluster_objects::Cluster;
use key_derivation::MasterSecret;
use prometheus_client::registry::Registry;
use service_runtime::{RuntimeArgs, listen, start, start_logging};
use tracing::info;
use zeroize::Zeroizing;

use crate::audit::AuditLog;
use crate::service::KeyService;

#[derive(Parser)]
#[command(version, about = "Hands out keys to authenticated callers inside the cluster")]
struct Args {
    /// Address on which callers connect.
    #[arg(long, default_value = "0.0.0.0:9000")]
    address: SocketAddr,
    /// File with the master secret, on the encrypted state disk.
    #[arg(long, default_value = "/run/constellation/master-secret.json")]
    master_secret: PathBuf,
    /// File in which every request is recorded before it is answered.
    #[arg(long, default_value = "/var/log/constellation/key-audit.log")]
    audit_log: PathBuf,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

#[tokio::main]
async fn main() -> Result<()> {
    start_logging();
    let args = Args::parse();
    let mut metrics = Registry::default();
    let master_secret = load_master_secret(&args.master_secret)?;
    let audit = AuditLog::open(&args.audit_log)?;
    let cluster = Cluster::connect().await?;
    let service = KeyService::new(master_secret, cluster, audit, &mut metrics);
    let identity = service.identity_seed();
    let runtime = start(args.runtime, metrics).await?;
    let listener = listen("--address", args.address).await?;
    runtime.ready().await;
    info!(address = %args.address, "key service ready");
    server::serve(service, listener, &identity, runtime.draining()).await
}

fn load_master_secret(path: &Path) -> Result<MasterSecret> {
    let name = path.display();
    let json = Zeroizing::new(std::fs::read(path).with_context(|| format!("--master-secret: cannot read {name}"))?);
    MasterSecret::parse(&json).with_context(|| format!("--master-secret: cannot use {name}"))
}
