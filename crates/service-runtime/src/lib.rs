//! What every service needs besides its own work: logs, metrics, health, drain.
//!
//! A service's `main` reads: parse arguments, [`start`], build, [`Runtime::ready`], serve until [`Runtime::draining`] ends.
//! Health and metrics have their own ports without TLS, because the kubelet and Prometheus speak nothing else. They reveal
//! no secret and change nothing, and whoever opens many connections to them keeps nobody else away.

mod attester;
#[cfg(test)]
mod floods;
mod health;
mod logs;
mod memory;
mod metrics;

use std::net::SocketAddr;

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use attester::AttesterArgs;
pub use logs::start_logging;
pub use memory::Memory;

/// The addresses on which every service listens, besides its own.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RuntimeArgs {
    /// Address for gRPC health (grpc.health.v1), without TLS.
    #[arg(long, default_value = "0.0.0.0:8090")]
    pub health_address: SocketAddr,
    /// Address for Prometheus metrics, at /metrics.
    #[arg(long, default_value = "0.0.0.0:8091")]
    pub metrics_address: SocketAddr,
}

/// A running service's connection to its surroundings.
pub struct Runtime {
    health: health::Health,
    stop: CancellationToken,
}

/// Starts to serve health (not ready yet) and metrics, and to listen for SIGTERM and SIGINT.
///
/// # Errors
/// When it cannot listen on an address.
pub async fn start(args: RuntimeArgs, metrics: Registry) -> Result<Runtime> {
    forbid_core_dumps()?;
    let stop = CancellationToken::new();
    let health = health::serve(listen("--health-address", args.health_address).await?, stop.clone()).await;
    metrics::serve(
        listen("--metrics-address", args.metrics_address).await?,
        metrics,
        stop.clone(),
    );
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("draining after SIGTERM"),
            _ = interrupt.recv() => info!("draining after SIGINT"),
        }
        stopper.cancel();
    });
    Ok(Runtime { health, stop })
}

impl Runtime {
    /// Tells probes that the service takes requests.
    pub async fn ready(&self) {
        self.health.set_ready(true).await;
    }

    /// Completes when the service should stop taking requests. Hand it to `serve_with_incoming_shutdown`.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        let (stop, health) = (self.stop.clone(), self.health.clone());
        async move {
            stop.cancelled().await;
            health.set_ready(false).await;
        }
    }
}

/// Listens on the address that this flag gave.
///
/// # Errors
/// When it cannot listen on the address.
pub async fn listen(flag: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag}: cannot listen on {address}"))
}

/// Keeps keys out of core dumps, and other processes from reading this one's memory. [`start`] calls it.
///
/// # Errors
/// When the kernel refuses.
pub fn forbid_core_dumps() -> Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot switch core dumps off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_cannot_be_listened_on_is_named_with_its_flag() {
        let taken = listen("--address", "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen("--address", address).await.unwrap_err();
        assert_eq!(error.to_string(), format!("--address: cannot listen on {address}"));
    }

    /// With one thread, no spawned task has run by the time the service is ready.
    #[tokio::test]
    async fn a_service_that_is_ready_at_once_stays_ready() {
        use tonic_health::pb::HealthCheckRequest;
        use tonic_health::pb::health_check_response::ServingStatus;
        use tonic_health::pb::health_client::HealthClient;
        // A service given port 0 does not report which port it got.
        let health_address = listen("", "127.0.0.1:0".parse().unwrap())
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let args = RuntimeArgs {
            health_address,
            metrics_address: "127.0.0.1:0".parse().unwrap(),
        };
        let runtime = start(args, Registry::default()).await.unwrap();
        runtime.ready().await;
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{health_address}")).unwrap();
        let mut client = HealthClient::new(endpoint.connect_lazy());
        let status = client.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(status.status(), ServingStatus::Serving);
    }

    #[tokio::test]
    async fn each_address_of_the_runtime_has_its_flag() {
        let free = "127.0.0.1:0".parse().unwrap();
        let listener = listen("--address", free).await.unwrap();
        let taken = listener.local_addr().unwrap();
        for (health_address, metrics_address, flag) in [
            (taken, free, "--health-address: "),
            (free, taken, "--metrics-address: "),
        ] {
            let args = RuntimeArgs {
                health_address,
                metrics_address,
            };
            let error = start(args, Registry::default()).await.err().unwrap().to_string();
            assert!(error.starts_with(flag), "{error}");
        }
    }
}
