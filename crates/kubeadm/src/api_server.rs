//! The health of the API server that kubeadm starts on this node.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::time::Duration;

use polling::{Failed, PollError, Schedule};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client};

use crate::render::API_PORT;

/// The first start of an API server, which creates a hundred objects, takes a slow machine minutes.
const START_LIMIT: Duration = Duration::from_secs(15 * 60);
const INTERVAL: Duration = Duration::from_secs(3);
/// An API server that starts may keep a connection waiting.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// Knows whether the API server of this node is healthy. Tests replace it.
pub trait ApiServer: Send + Sync {
    /// Succeeds once the API server at this address, with a certificate of this CA, says that it is healthy.
    fn check<'a>(&'a self, address: Ipv4Addr, ca_cert_pem: &'a str) -> Checking<'a>;
}

/// The future of [`ApiServer::check`].
pub type Checking<'a> = Pin<Box<dyn Future<Output = Result<(), HealthCheckError>> + Send + 'a>>;

/// The API server is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum HealthCheckError {
    /// It cannot be asked.
    #[error("cannot ask the API server for its health")]
    Unreachable(#[from] reqwest::Error),
    /// It answers something else. Until its roles exist, it allows nobody to ask (403); until it has started, it fails (500).
    #[error("the API server answers with status {0}")]
    Status(u16),
}

/// The API server did not become healthy.
#[derive(Debug, thiserror::Error)]
#[error("the API server was not healthy within {} minutes", START_LIMIT.as_secs() / 60)]
pub struct StartTimeoutError(#[source] Option<HealthCheckError>);

/// The API server of this node.
pub struct OwnApiServer;

impl ApiServer for OwnApiServer {
    fn check<'a>(&'a self, address: Ipv4Addr, ca_cert_pem: &'a str) -> Checking<'a> {
        Box::pin(check(SocketAddrV4::new(address, API_PORT).into(), ca_cert_pem))
    }
}

/// Waits until the API server is healthy in the sense of the controller manager, which exits if it is not.
pub(crate) async fn wait_until_healthy(
    server: &dyn ApiServer,
    address: Ipv4Addr,
    ca_cert_pem: &str,
) -> Result<(), StartTimeoutError> {
    let attempt = || async { server.check(address, ca_cert_pem).await.map_err(Failed::Retry) };
    let schedule = Schedule::every(INTERVAL, START_LIMIT);
    schedule.poll(attempt, |_, _| {}).await.map_err(|error| match error {
        PollError::Stopped(error) | PollError::TooOften(error) => StartTimeoutError(Some(error)),
        PollError::TimedOut { last, .. } => StartTimeoutError(last),
    })
}

async fn check(address: SocketAddr, ca_cert_pem: &str) -> Result<(), HealthCheckError> {
    let client = Client::builder()
        .tls_certs_only([Certificate::from_pem(ca_cert_pem.as_bytes())?])
        .no_proxy()
        .redirect(Policy::none())
        .timeout(ANSWER_LIMIT)
        .build()?;
    // Kubernetes allows everyone to ask (ClusterRole system:public-info-viewer).
    match client.get(format!("https://{address}/healthz")).send().await?.status() {
        status if status.is_success() => Ok(()),
        status => Err(HealthCheckError::Status(status.as_u16())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    fn new_ca() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// An API server that answers everything with this status line.
    async fn serve(ca: &CertifiedIssuer<'static, KeyPair>, status: &'static str) -> SocketAddr {
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, ca).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /healthz HTTP/1.1\r\n"));
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn only_a_success_is_healthy() {
        let ca = new_ca();
        let healthy = serve(&ca, "200 OK").await;
        check(healthy, &ca.pem()).await.unwrap();
        for (status, code) in [
            ("403 Forbidden", 403),
            ("500 Internal Server Error", 500),
            ("302 Found\r\nlocation: /elsewhere", 302),
        ] {
            let error = check(serve(&ca, status).await, &ca.pem()).await.unwrap_err();
            assert!(
                matches!(error, HealthCheckError::Status(seen) if seen == code),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_server_of_another_ca_is_not_asked() {
        let healthy = serve(&new_ca(), "200 OK").await;
        let error = check(healthy, &new_ca().pem()).await.unwrap_err();
        assert!(matches!(error, HealthCheckError::Unreachable(_)), "{error}");
    }

    /// Healthy at the third attempt, or never.
    struct Starting(AtomicU32, bool);

    impl ApiServer for Starting {
        fn check<'a>(&'a self, _: Ipv4Addr, _: &'a str) -> Checking<'a> {
            let attempt = self.0.fetch_add(1, Ordering::Relaxed);
            let healthy = self.1 && attempt == 2;
            Box::pin(async move {
                if healthy {
                    Ok(())
                } else {
                    Err(HealthCheckError::Status(403))
                }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_starts_is_waited_for_and_one_that_does_not_is_given_up() {
        let wait = async |healthy| {
            let server = Starting(AtomicU32::new(0), healthy);
            let waited = wait_until_healthy(&server, Ipv4Addr::LOCALHOST, "").await;
            (waited, server.0.into_inner())
        };
        let (waited, attempts) = wait(true).await;
        waited.unwrap();
        assert_eq!(attempts, 3);
        let (waited, _) = wait(false).await;
        let error = waited.unwrap_err();
        assert_eq!(error.to_string(), "the API server was not healthy within 15 minutes");
        assert!(matches!(error.0, Some(HealthCheckError::Status(403))));
    }
}
