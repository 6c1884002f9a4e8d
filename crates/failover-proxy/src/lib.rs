//! A TCP proxy that passes TLS on to whichever upstream answers.
//!
//! An upstream counts as healthy when it answers the client's `ClientHello`. If it does not soon, the next one gets it too, so a client does
//! not notice that an upstream is gone or hangs. Later failures end the connection, and the client opens another one.
//!
//! API servers that say that they are not ready are asked only when no other one answers ([`follow_readiness`]).
//!
//! # Security
//! The proxy has no key. Client and server authenticate each other, so an impostor among the upstreams costs availability alone.

mod connection;
mod readiness;
mod upstreams;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::warn;

pub use readiness::follow_readiness;
pub use upstreams::Upstreams;

/// The kubelet, kube-proxy and the pod network need a few each. Whoever opens many keeps others waiting. Each needs two descriptors or a few
/// more, of which a process has 1024.
const CONNECTIONS: usize = 300;
/// After the system had no file descriptor left, for example.
const ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// Serves until the future is dropped, which ends all connections at once.
pub async fn serve(listener: TcpListener, upstreams: &Arc<Upstreams>) -> Infallible {
    let mut connections = tokio::task::JoinSet::new();
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = free.clone().acquire_owned().await.expect("nobody closes the semaphore");
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => {
                let upstreams = upstreams.clone();
                connections.spawn(async move {
                    connection::pass(client, &upstreams).await;
                    drop(permit);
                });
            }
            Err(error) => refused(&error).await,
        }
    }
}

async fn refused(error: &io::Error) {
    warn!(%error, "cannot accept a connection");
    sleep(ACCEPT_DELAY).await;
}
