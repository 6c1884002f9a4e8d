//! The VerificationService: gives fresh Evidence of its node to anyone.
//!
//! gRPC runs inside attested TLS (purpose `verify`). Opening a session is already the verification, because the node's
//! Evidence is bound to it. For callers that have only `curl`, HTTP gives Evidence over a nonce alone, which shows that a
//! node in this state answered, but not who the peer is. Nothing here is secret, so callers need not authenticate.

mod http;
mod service;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::Purpose;
use attestation_daemon_client::AttestationArgs;
use attested_tls::{Endpoint, PeerPolicy, incoming};
use clap::Parser;
use grpc_api::verify::api_server::ApiServer;
use prometheus_client::registry::Registry;
use service_runtime::{RuntimeArgs, listen, start, start_logging};
use tonic::transport::Server;
use tracing::info;

use crate::service::Quoting;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Then a session ends: whoever wants more opens another one.
const SESSION_LIMIT: Duration = Duration::from_secs(120);
/// Of one session. A client needs one.
const STREAMS: u32 = 4;
const MAX_MESSAGE_LEN: usize = 4096;

#[derive(Parser)]
#[command(version, about = "Gives fresh evidence of its node to anyone")]
struct Args {
    /// Address for gRPC, inside attested TLS.
    #[arg(long, default_value = "0.0.0.0:9090")]
    address: SocketAddr,
    /// Address for HTTP.
    #[arg(long, default_value = "0.0.0.0:8080")]
    http_address: SocketAddr,
    #[command(flatten)]
    attestation: AttestationArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

#[tokio::main]
async fn main() -> Result<()> {
    start_logging();
    let args = Args::parse();
    let mut metrics = Registry::default();
    let attester = args.attestation.connect().await?;
    let quoting = Quoting::new(attester.clone(), &mut metrics);
    let peer = PeerPolicy::Unattested {
        reason: "anyone may verify a node",
    };
    let endpoint = Arc::new(Endpoint::new(Some(attester), peer));

    let runtime = start(args.runtime, metrics).await?;
    let http = http::serve(
        listen("--http-address", args.http_address).await?,
        quoting.clone(),
        runtime.draining(),
    );
    let sessions = incoming(listen("--address", args.address).await?, endpoint, &[Purpose::Verify]);
    runtime.ready().await;
    info!(address = %args.address, http_address = %args.http_address, "verification service ready");
    let grpc = Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .max_connection_age(SESSION_LIMIT)
        // Otherwise a session ends only if its client agrees.
        .max_connection_age_grace(Duration::ZERO)
        .max_concurrent_streams(STREAMS)
        .add_service(ApiServer::new(quoting).max_decoding_message_size(MAX_MESSAGE_LEN))
        .serve_with_incoming_shutdown(sessions, runtime.draining());
    tokio::try_join!(async { grpc.await.context("serving gRPC") }, async {
        http.await.context("serving HTTP")
    })?;
    Ok(())
}
