use accept_loop::connections;
use error_report::Chain;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::error;

use crate::metrics::PLACES;

/// Of one connection. A probe needs one.
const STREAMS: u32 = 4;

/// The service's state, as probes see it.
#[derive(Clone)]
pub(crate) struct Health(HealthReporter);

impl Health {
    /// The empty name stands for the whole server, which is what the kubelet probes.
    pub(crate) async fn set_ready(&self, ready: bool) {
        let status = if ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        self.0.set_service_status("", status).await;
    }
}

pub(crate) async fn serve(listener: TcpListener, stop: CancellationToken) -> Health {
    let (reporter, service) = tonic_health::server::health_reporter();
    let health = Health(reporter);
    // Not inside the task, which on a busy machine may run only after the service is ready.
    health.set_ready(false).await;
    tokio::spawn(async move {
        let served = Server::builder()
            .max_concurrent_streams(STREAMS)
            .add_service(service)
            .serve_with_incoming_shutdown(connections(listener, PLACES), stop.cancelled())
            .await;
        if let Err(failure) = served {
            error!(error = %Chain(&failure), "health server ended");
        }
    });
    health
}
