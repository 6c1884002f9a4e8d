//! Whoever floods the ports of probes and metrics, which every pod reaches.

use std::net::SocketAddr;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::metrics::PLACES;

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A pod, whose address is not the kubelet's, holds as many as there are places for, all silent.
async fn hold_connections(address: SocketAddr) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..PLACES {
        held.push(connect_as_pod(address).await);
    }
    held
}

async fn connect_as_pod(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    socket.connect(address).await.unwrap()
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
    let mut greedy = connect_as_pod(address).await;
    let requests = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    // The server stops reading when it cannot write.
    let asked = tokio::time::timeout(Duration::from_secs(2), greedy.write_all(&requests)).await;
    drop(asked);
    let _held = hold_connections(address).await;
    let _kubelet = TcpStream::connect(address).await.unwrap();
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
