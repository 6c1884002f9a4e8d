//! Over real connections, with upstreams that fail in every way they can.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use failover_proxy::{Upstreams, follow_readiness, serve};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// A TLS record with a handshake of five bytes.
const HELLO: &[u8] = b"\x16\x03\x01\x00\x05hello";
/// Longer than every limit of the proxy.
const LIMIT: Duration = Duration::from_secs(60);

struct Proxy {
    address: SocketAddr,
    first: SocketAddr,
    upstreams: Arc<Upstreams>,
    serving: AbortHandle,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Proxy {
    async fn to(upstreams_given: &[SocketAddr]) -> Self {
        let (listener, address) = listener().await;
        let all = Arc::new(Upstreams::default());
        all.set(upstreams_given);
        let upstreams = all.clone();
        let serving = tokio::spawn(async move { serve(listener, &all).await });
        Self {
            address,
            first: upstreams_given[0],
            upstreams,
            serving: serving.abort_handle(),
        }
    }

    /// What the upstream says, until the connection ends.
    async fn ask(&self, words: &[&[u8]]) -> Vec<u8> {
        let asked = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            for part in words {
                stream.write_all(part).await.unwrap();
                // So that they arrive apart.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let mut answer = Vec::new();
            // A connection that is reset has no answer.
            let _ = stream.read_to_end(&mut answer).await;
            answer
        };
        timeout(LIMIT, asked).await.unwrap()
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Answers the whole greeting with its name, and closes.
async fn answers(name: &'static str) -> (SocketAddr, AbortHandle) {
    let (listener, address) = listener().await;
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = [0; HELLO.len()];
            if stream.read_exact(&mut heard).await.is_ok() {
                assert_eq!(heard, HELLO);
                stream.write_all(name.as_bytes()).await.unwrap();
            }
        }
    });
    (address, serving.abort_handle())
}

async fn refuses() -> SocketAddr {
    listener().await.1
}

/// As the port that QEMU forwards to a machine that is off.
async fn closes() -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    address
}

async fn hangs() -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await);
        }
    });
    address
}

#[tokio::test]
async fn the_first_one_that_answers_is_used() {
    let (good, _serving) = answers("first").await;
    let (other, _serving) = answers("second").await;
    let proxy = Proxy::to(&[good, other]).await;
    assert_eq!(proxy.ask(&[HELLO]).await, b"first");
    assert_eq!(proxy.ask(&[&HELLO[..3], &HELLO[3..]]).await, b"first");
}

#[tokio::test]
async fn a_client_does_not_notice_who_is_gone() {
    let (good, _serving) = answers("good").await;
    for bad in [refuses().await, closes().await, hangs().await] {
        let proxy = Proxy::to(&[bad, good]).await;
        assert_eq!(proxy.ask(&[&HELLO[..7], &HELLO[7..]]).await, b"good");
        // The second client is not kept waiting.
        let quick = timeout(Duration::from_secs(5), proxy.ask(&[HELLO])).await;
        assert_eq!(quick.unwrap(), b"good");
    }
}

#[tokio::test]
async fn one_that_ends_later_is_replaced() {
    let (first, serving) = answers("first").await;
    let (second, _serving) = answers("second").await;
    let proxy = Proxy::to(&[first, second]).await;
    assert_eq!(proxy.ask(&[HELLO]).await, b"first");
    serving.abort();
    assert_eq!(proxy.ask(&[HELLO]).await, b"second");
    proxy.upstreams.set(&[]);
    assert_eq!(proxy.ask(&[HELLO]).await, b"");
}

/// An upstream that waits for more is not to blame.
#[tokio::test]
async fn a_client_that_leaves_blames_nobody() {
    let (first, _serving) = answers("first").await;
    let (second, _serving) = answers("second").await;
    let proxy = Proxy::to(&[first, second]).await;
    for words in [&b""[..], &HELLO[..8], HELLO] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(words).await.unwrap();
        drop(stream);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(proxy.ask(&[HELLO]).await, b"first");
}

/// As clients of Kubernetes do after ten seconds: they come back, and then somebody else is asked first.
#[tokio::test]
async fn a_client_that_gives_up_blames_who_was_slow() {
    let (good, _serving) = answers("good").await;
    let proxy = Proxy::to(&[hangs().await]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(HELLO).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(stream);
    let slow = proxy.upstreams.clone();
    slow.set(&[proxy.first, good]);
    let quick = timeout(Duration::from_secs(1), proxy.ask(&[HELLO])).await;
    assert_eq!(quick.unwrap(), b"good");
}

/// One after the other, not each for its whole limit.
#[tokio::test]
async fn several_that_hang_do_not_add_up() {
    let (good, _serving) = answers("good").await;
    let proxy = Proxy::to(&[hangs().await, hangs().await, good]).await;
    let asked = timeout(Duration::from_secs(8), proxy.ask(&[HELLO])).await;
    assert_eq!(asked.unwrap(), b"good");
}

#[tokio::test]
async fn what_is_not_tls_goes_nowhere() {
    let (good, _serving) = answers("good").await;
    let proxy = Proxy::to(&[good]).await;
    assert_eq!(proxy.ask(&[b"GET / HTTP/1.1\r\n\r\n"]).await, b"");
}

#[tokio::test]
async fn both_directions_go_on_after_the_first_answer() {
    let (listener, address) = listener().await;
    let proxy = Proxy::to(&[address]).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(HELLO).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    let mut heard = [0; HELLO.len()];
    upstream.read_exact(&mut heard).await.unwrap();
    for round in 0..100_u8 {
        upstream.write_all(&[round; 1000]).await.unwrap();
        let mut answer = [0; 1000];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [round; 1000]);
        client.write_all(&[round]).await.unwrap();
        let mut said = [0];
        upstream.read_exact(&mut said).await.unwrap();
        assert_eq!(said, [round]);
    }
    // The end of one direction is passed on, and the other one stays open.
    client.shutdown().await.unwrap();
    assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
    upstream.write_all(b"goodbye").await.unwrap();
    drop(upstream);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"goodbye");
}

/// Says whether it is ready, and answers a greeting with its name after some time.
async fn api_server(status: &'static str, name: &'static str, delay: Duration) -> SocketAddr {
    let (listener, address) = listener().await;
    let certified = rcgen::generate_simple_self_signed(["api-server".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.into()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut first = [0; HELLO.len()];
                while stream.peek(&mut first).await.unwrap() < HELLO.len() {}
                if first == HELLO {
                    tokio::time::sleep(delay).await;
                    return stream.write_all(name.as_bytes()).await;
                }
                let mut stream = acceptor.accept(stream).await?;
                let read = stream.read(&mut [0; 1024]).await?;
                assert!(read > 0);
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await
            });
        }
    });
    address
}

/// While it joins, a control plane has nothing else to do and answers first.
#[tokio::test]
async fn one_that_is_slow_and_ready_is_better_than_one_that_is_not() {
    let quick = api_server("500 Internal Server Error", "not ready", Duration::ZERO).await;
    let slow = api_server("200 OK", "ready", Duration::from_secs(3)).await;
    let proxy = Proxy::to(&[quick, slow]).await;
    let upstreams = proxy.upstreams.clone();
    let following = tokio::spawn(async move { follow_readiness(&upstreams).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(proxy.ask(&[HELLO]).await, b"ready");
    following.abort();
    // One that is not ready is better than none.
    proxy.upstreams.set(&[quick]);
    assert_eq!(proxy.ask(&[HELLO]).await, b"not ready");
}
