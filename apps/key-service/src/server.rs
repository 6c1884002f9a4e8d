use std::time::Duration;

use anyhow::Result;
use grpc_api::kms::api_server::ApiServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tower::limit::GlobalConcurrencyLimitLayer;

use crate::service::KeyService;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Evidence and policy have at most 320 KiB.
const MAX_MESSAGE_LEN: usize = 512 * 1024;
/// Of all connections together: what a request takes is in memory until it is answered or times out.
const CONCURRENT_REQUESTS: usize = 16;

/// Serves `constellation.kms.v1.API` until the service drains.
pub(crate) async fn serve(
    service: KeyService,
    listener: UnixListener,
    draining: impl Future<Output = ()>,
) -> Result<()> {
    Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .layer(GlobalConcurrencyLimitLayer::new(CONCURRENT_REQUESTS))
        .add_service(ApiServer::new(service).max_decoding_message_size(MAX_MESSAGE_LEN))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), draining)
        .await?;
    Ok(())
}
