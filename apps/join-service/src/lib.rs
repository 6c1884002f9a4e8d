//! The JoinService: admits only nodes that prove what they run, and hands them what they need.
//!
//! Both sides attest. This service is the door, and the key service decides: it appraises the node's Evidence once more, and what it
//! releases is sealed to the node, so this service never holds a node's keys. A name belongs to the machine that claimed it first. A
//! kubelet's certificate request is approved only if it asks for exactly its node's name and address. Which images are admitted and what nodes install is the
//! operator's signed policy; an edited ConfigMap changes neither.

mod api_server;
mod approver;
mod certificate;
mod config;
mod service;
mod ticket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::{Attester, Purpose, Variants, Verifiers};
use attestation_daemon_client::AttestationArgs;
use attested_tls::{Endpoint, PeerPolicy, incoming};
use clap::Parser;
use cluster_objects::Cluster;
use cluster_policy::PolicyStore;
use grpc_api::join::api_server::ApiServer;
use key_service_client::KeyServiceClient;
use prometheus_client::registry::Registry;
use service_runtime::{RuntimeArgs, listen, start, start_logging};
use tonic::transport::Server;
use tracing::info;

use crate::api_server::ApiServerCertificate;
use crate::config::{ConfiguredVerifier, TrustAnchor, UncheckedConfig};
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
    /// File with the certificate of the API server on this control plane.
    #[arg(long, default_value = "/etc/kubernetes/pki/apiserver.crt")]
    api_server_certificate: PathBuf,
    /// Unix socket of the key service on this control plane.
    #[arg(long, default_value = "/run/constellation/key-service/socket")]
    key_service: PathBuf,
    /// Seconds after which a session ends. Whoever opens another one is appraised again.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=120))]
    session_limit: u64,
    #[command(flatten)]
    attestation: AttestationArgs,
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
    let config = UncheckedConfig::load(args.config)?;
    let attester = args.attestation.connect().await?;
    let anchor = TrustAnchor {
        measured: variants.statements(attester.variant(), attester.shown())?,
        store: PolicyStore::new(args.policy_store),
    };
    let config = config.check(anchor, variants)?;
    let keys = KeyServiceClient::new(&args.key_service);
    let api_server = ApiServerCertificate::open(args.api_server_certificate).context("--api-server-certificate")?;
    let cluster = Cluster::connect().await?;
    let issuer = TicketIssuer::new(cluster.clone(), keys.clone(), api_server, config.clone());
    let service = JoinService::new(issuer, &mut metrics);
    let peer = PeerPolicy::Attested(Arc::new(Verifiers::one(ConfiguredVerifier::new(config.clone()))));
    // The key service draws the nonces, because it appraises the Evidence too before it releases anything.
    let endpoint = Endpoint::new(Some(attester), peer).with_nonces(Arc::new(keys));
    let endpoint = Arc::new(endpoint);

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
