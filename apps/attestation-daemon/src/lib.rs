//! The attestation daemon: attests for the services of its node, so that no pod has the device.
//!
//! Each service has a socket of its own, which its user alone can open and which has fixed purposes (`Clientele`). The daemon computes
//! what the Evidence is bound to, always for the server of a session and never with a sealing key: whoever takes a service over gets no
//! Evidence with which to ask anyone for secrets. It measures nothing.

mod device;
mod request;
mod service;

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::Variants;
use clap::Parser;
use cluster_types::Service;
use grpc_api::attestation::api_server::ApiServer;
use service_runtime::{AttesterArgs, start_logging};
use tonic::transport::Server;
use tracing::info;
use unix_grpc::incoming;

use crate::device::Device;
use crate::service::{Attestation, Clientele};

/// A request has a few hundred bytes.
const MAX_MESSAGE_LEN: usize = 4096;
const MAX_HEADER_LIST_LEN: u32 = 4096;
/// For one request, with those that come first.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A service needs one connection. Another one is for when it has just been restarted.
const CONNECTIONS: usize = 4;
/// Requests at once on one connection: one for each connection of the service's own, and a few others.
const STREAMS: u32 = 192;

#[derive(Parser)]
#[command(version, about = "Attests for the services of its node")]
struct Args {
    /// Unix socket of the join service.
    #[arg(long, default_value = "/run/constellation/attestation/join-service/socket")]
    join_socket: PathBuf,
    /// Number of the user who alone may open it.
    #[arg(long, default_value_t = Service::Join.user())]
    join_user: u32,
    /// Unix socket of the verification service.
    #[arg(long, default_value = "/run/constellation/attestation/verification-service/socket")]
    verification_socket: PathBuf,
    /// Number of the user who alone may open it.
    #[arg(long, default_value_t = Service::Verification.user())]
    verification_user: u32,
    #[command(flatten)]
    attester: AttesterArgs,
}

/// Serves until it is killed: there is nothing to finish.
///
/// # Errors
/// When an argument is of no use, or the daemon cannot go on.
pub async fn run(variants: &'static dyn Variants) -> Result<()> {
    start_logging();
    let args = Args::parse();
    let attester = args.attester.set_up(variants)?;
    let identity = attester.identity();
    let device = Device::new(attester);
    let join = Socket {
        flag: "--join-socket",
        path: args.join_socket,
        user: args.join_user,
        clientele: Clientele::JoinService,
    };
    let verification = Socket {
        flag: "--verification-socket",
        path: args.verification_socket,
        user: args.verification_user,
        clientele: Clientele::VerificationService,
    };
    let (join, verification) = (join.serve(&device)?, verification.serve(&device)?);
    info!(%identity, "attestation daemon ready");
    tokio::try_join!(join, verification)?;
    Ok(())
}

/// Where one service asks.
struct Socket {
    flag: &'static str,
    path: PathBuf,
    user: u32,
    clientele: Clientele,
}

impl Socket {
    /// Listens, and serves as long as the result is polled.
    fn serve(&self, device: &Device) -> Result<impl Future<Output = Result<()>> + use<>> {
        let Self {
            flag,
            path,
            user,
            clientele,
        } = self;
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).with_context(|| format!("{flag}: cannot make {}", folder.display()))?;
        let listener = unix_grpc::listen(flag, path, 0o600)?;
        chown(path, Some(*user), None).with_context(|| format!("{flag}: cannot give {} away", path.display()))?;
        let api = ApiServer::new(Attestation::new(device, *clientele)).max_decoding_message_size(MAX_MESSAGE_LEN);
        let serving = Server::builder()
            .timeout(REQUEST_TIMEOUT)
            .max_concurrent_streams(STREAMS)
            .http2_max_header_list_size(MAX_HEADER_LIST_LEN)
            .add_service(api)
            .serve_with_incoming(incoming(listener, CONNECTIONS));
        let flag = *flag;
        Ok(async move { serving.await.with_context(|| format!("{flag}: cannot serve")) })
    }
}
