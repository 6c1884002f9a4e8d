//! The JoinService: admits only nodes that prove what they run, and hands them what they need.
//!
//! Both sides attest. A node gets its own disk key and no other: the disk's UUID is drawn for the attested machine, and a name
//! belongs to the machine that claimed it first. It becomes a control plane only with the operator's grant. Its kubelet certificate says what
//! the ticket allows, not what the request says. Which images are admitted and what nodes install is the operator's signed
//! policy; an edited ConfigMap changes neither.

mod approver;
mod certificate;
mod config;
mod pki;
mod service;
mod ticket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::{Purpose, Variants, Verifiers};
use attested_tls::{Endpoint, PeerPolicy, incoming};
use clap::Parser;
use cluster_objects::Cluster;
use cluster_policy::PolicyStore;
use cluster_types::{HostPort, Service};
use grpc_api::join::api_server::ApiServer;
use key_service_client::KeyServiceClient;
use prometheus_client::registry::Registry;
use service_runtime::{AttesterArgs, RuntimeArgs, listen, start, start_logging};
use tonic::transport::Server;
use tracing::info;

use crate::config::{ConfiguredVerifier, TrustAnchor, UncheckedConfig};
use crate::pki::Pki;
use crate::service::JoinService;
use crate::ticket::TicketIssuer;

const PURPOSES: &[Purpose] = &[Purpose::Join, Purpose::Rejoin];
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_MESSAGE_LEN: usize = 64 * 1024;

#[derive(Parser)]
#[command(version, about = "Admits only nodes that prove what they run")]
struct Args {
    /// Address on which nodes connect.
    #[arg(long, default_value = "0.0.0.0:9090")]
    address: SocketAddr,
    /// Folder with the mounted ConfigMap join-config.
    #[arg(long, default_value = "/var/config")]
    config: PathBuf,
    /// File with the newest cluster policy that this node has seen, on the encrypted state disk.
    #[arg(long, default_value = "/run/constellation/policy/cluster-policy")]
    policy_store: PathBuf,
    /// Folder with the cluster's certificate authorities.
    #[arg(long, default_value = "/etc/kubernetes/pki")]
    pki: PathBuf,
    /// The key service, as host:port.
    #[arg(long, default_value_t = key_service())]
    key_service: HostPort,
    /// File with a service-account token for audience key-service, which the kubelet renews.
    #[arg(long, default_value = "/var/run/secrets/key-service/token")]
    key_service_token: PathBuf,
    /// Seconds after which a session ends. Whoever opens another one is appraised again.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    session_limit: u64,
    #[command(flatten)]
    attester: AttesterArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Where the cluster's DNS has it.
fn key_service() -> HostPort {
    let [port] = Service::Key.ports() else {
        unreachable!("it has one port")
    };
    let address = format!("{}:{}", Service::Key.dns_name(), port.number);
    address.parse().expect("a DNS name and a port")
}

/// Runs the service until it is told to end.
///
/// # Errors
/// When an argument is of no use, or the service cannot go on.
pub async fn run(variants: &'static dyn Variants) -> Result<()> {
    start_logging();
    let args = Args::parse();
    let mut metrics = Registry::default();
    let config = UncheckedConfig::load(args.config)?;
    let attester = args.attester.set_up(variants)?;
    let anchor = TrustAnchor {
        measured: attester.statements()?,
        store: PolicyStore::new(args.policy_store),
    };
    let config = config.check(anchor, variants)?;
    let keys = KeyServiceClient::new(
        args.key_service.as_str(),
        config.in_force().config.key_service_key,
        args.key_service_token,
    )
    .context("--key-service")?;
    let pki = Pki::open(args.pki).context("--pki")?;
    let cluster = Cluster::connect().await?;
    let issuer = TicketIssuer::new(cluster.clone(), keys, pki, config.clone());
    let service = JoinService::new(issuer, &mut metrics);
    let peer = PeerPolicy::Attested(Arc::new(Verifiers::one(ConfiguredVerifier::new(config.clone()))));
    let endpoint = Arc::new(Endpoint::new(Some(attester), peer));

    let runtime = start(args.runtime, metrics).await?;
    let reloading = tokio::spawn(config.reload_on_change());
    let approving = tokio::spawn(approver::approve_kubelets(cluster));
    let sessions = incoming(listen("--address", args.address).await?, endpoint, PURPOSES);
    runtime.ready().await;
    info!(address = %args.address, "join service ready");
    Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .max_connection_age(Duration::from_secs(args.session_limit))
        // Otherwise a session ends only if its node agrees.
        .max_connection_age_grace(Duration::ZERO)
        .add_service(ApiServer::new(service).max_decoding_message_size(MAX_MESSAGE_LEN))
        .serve_with_incoming_shutdown(sessions, runtime.draining())
        .await?;
    reloading.abort();
    approving.abort();
    Ok(())
}
