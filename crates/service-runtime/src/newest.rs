//! Connections of unknown callers: every pod reaches the ports of probes and metrics.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Open connections of one listener.
const PLACES: usize = 32;
/// Pause after accepting failed, for instance because there were no file descriptors left.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// Keeps the newest connections: when all places are taken, a new one ends the oldest. Whoever opens many and holds them costs bounded
/// memory, and does not keep the kubelet's short ones away.
pub(crate) struct Newest {
    listener: TcpListener,
    /// The oldest first.
    open: VecDeque<(Weak<()>, CancellationToken)>,
}

/// An accepted connection, on which everything fails once it has lost its place.
pub(crate) struct Connection {
    stream: TcpStream,
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Arc<()>,
}

impl Newest {
    pub(crate) fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            open: VecDeque::new(),
        }
    }

    /// # Cancel safety
    /// No connection is lost.
    pub(crate) async fn next(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = loop {
            match self.listener.accept().await {
                Ok(accepted) => break accepted,
                Err(_) => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
            }
        };
        self.open.retain(|(place, _)| place.strong_count() > 0);
        while self.open.len() >= PLACES {
            if let Some((_, oldest)) = self.open.pop_front() {
                oldest.cancel();
            }
        }
        let (place, token) = (Arc::new(()), CancellationToken::new());
        self.open.push_back((Arc::downgrade(&place), token.clone()));
        let connection = Connection {
            stream,
            lost: Box::pin(token.cancelled_owned()),
            _place: place,
        };
        (connection, address)
    }
}

impl Listener for Newest {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        self.next().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl Connection {
    fn check_place(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.lost.as_mut().poll(cx).is_ready() {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_place(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // A peer that reads nothing keeps its server writing.
        self.check_place(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_place(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::sync::CancellationToken;
    use tonic::transport::Endpoint;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// More than there are places for, all silent.
    async fn hold_connections(address: SocketAddr) -> Vec<TcpStream> {
        let mut held = Vec::new();
        for _ in 0..3 * PLACES {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        held
    }

    async fn must_be_ended(mut stream: TcpStream) {
        let mut bytes = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes)).await;
        // Whatever the server had begun to say.
        assert!(ended.is_ok());
    }

    /// A pod wants the kubelet to restart the service.
    #[tokio::test]
    async fn probes_get_through_while_somebody_holds_connections() {
        let (listener, address) = listen().await;
        let health = crate::health::serve(listener, CancellationToken::new()).await;
        health.set_ready(true).await;
        let mut held = hold_connections(address).await;
        for _ in 0..3 {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            let mut client = HealthClient::new(endpoint.connect().await.unwrap());
            client.check(HealthCheckRequest::default()).await.unwrap();
        }
        must_be_ended(held.remove(0)).await;
    }

    /// A peer that asks again and again and reads no answer.
    #[tokio::test]
    async fn a_peer_that_reads_nothing_loses_its_place_too() {
        let (listener, address) = listen().await;
        let mut registry = Registry::default();
        for number in 0..1000 {
            let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
            registry.register(format!("a_counter_{number}"), "Makes answers long", counter);
        }
        crate::metrics::serve(listener, registry, CancellationToken::new());
        let mut greedy = TcpStream::connect(address).await.unwrap();
        let requests = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
        // The server stops to read when it cannot write.
        let asked = tokio::time::timeout(Duration::from_secs(2), greedy.write_all(&requests)).await;
        drop(asked);
        let _held = hold_connections(address).await;
        must_be_ended(greedy).await;
    }

    #[tokio::test]
    async fn metrics_are_read_while_somebody_holds_connections() {
        let (listener, address) = listen().await;
        crate::metrics::serve(listener, Registry::default(), CancellationToken::new());
        let mut held = hold_connections(address).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        must_be_ended(held.remove(0)).await;
    }
}
