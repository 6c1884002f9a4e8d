//! Which API servers say that they are ready. One whose etcd does not vote yet, or has no quorum, answers TLS and serves nobody.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use tokio::time::sleep;
use tracing::info;

use crate::Upstreams;

/// Each time, an API server asks its etcd. Connections are kept, because a handshake costs a slow machine more than the answer.
const INTERVAL: Duration = Duration::from_secs(5);
/// One that is slow is neither ready nor not: what it said last counts.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Asks all upstreams at `/readyz`, again and again, and tells `upstreams`. One alone is not asked, because there is no choice.
///
/// # Security
/// Certificates are not verified: this program has no CA. An impostor that calls itself ready is tried, and the client refuses it.
pub async fn follow_readiness(upstreams: &Arc<Upstreams>) -> Infallible {
    let client = Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .no_proxy()
        .timeout(ANSWER_LIMIT)
        .build()
        .expect("a client without certificates needs nothing of the system");
    loop {
        let addresses = upstreams.in_order();
        if addresses.len() > 1 {
            let asked = addresses.into_iter().map(|address| ask(&client, address));
            for (address, is_ready) in futures_util::future::join_all(asked).await {
                let Some(is_ready) = is_ready else { continue };
                if upstreams.set_ready(address, is_ready) {
                    info!(%address, is_ready, "readiness changed");
                }
            }
        }
        sleep(INTERVAL).await;
    }
}

/// `None` if it said nothing in time.
async fn ask(client: &Client, address: SocketAddr) -> (SocketAddr, Option<bool>) {
    let answered = client.get(format!("https://{address}/readyz")).send().await;
    let is_ready = match answered {
        // Whoever may not ask is refused by an API server that works.
        Ok(response) => Some(matches!(
            response.status(),
            StatusCode::OK | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        )),
        Err(error) if error.is_timeout() => None,
        Err(_) => Some(false),
    };
    (address, is_ready)
}
