use std::io;
use std::time::Duration;

use accept_loop::accept;
use anyhow::Result;
use grpc_api::kms::api_server::ApiServer;
use key_service_client::server_config;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;

use crate::service::KeyService;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const CONCURRENT_HANDSHAKES: usize = 32;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_MESSAGE_LEN: usize = 4096;

/// Serves `constellation.kms.v1.API` over TLS until the service drains.
pub(crate) async fn serve(
    service: KeyService,
    listener: TcpListener,
    identity_seed: &[u8; 32],
    draining: impl Future<Output = ()>,
) -> Result<()> {
    let acceptor = TlsAcceptor::from(server_config(identity_seed));
    let incoming = accept(listener, CONCURRENT_HANDSHAKES, move |stream| {
        handshake(acceptor.clone(), stream)
    });
    Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .add_service(ApiServer::new(service).max_decoding_message_size(MAX_MESSAGE_LEN))
        .serve_with_incoming_shutdown(incoming, draining)
        .await?;
    Ok(())
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the caller did not finish the TLS handshake"))?
}
