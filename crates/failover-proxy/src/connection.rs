use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use error_report::Chain;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::Upstreams;

/// After so long without an answer, the next upstream is asked as well. Clients of Kubernetes wait ten seconds for all of them.
const PATIENCE: Duration = Duration::from_secs(2);
/// An upstream that says nothing for so long will not.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// A client that says nothing for so long is not one.
const HELLO_LIMIT: Duration = Duration::from_secs(30);
/// Of a TLS record: type, version and length (RFC 8446 section 5.1).
const HEADER_LEN: usize = 5;
const HANDSHAKE: u8 = 22;
/// RFC 8446 section 5.1.
const MAX_RECORD_LEN: u16 = 1 << 14;
/// A connection to a machine that is gone ends after so long, whether something is sent or not.
const DEAD_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(15))
    .with_interval(Duration::from_secs(5));

/// Why an upstream does not count as healthy.
#[derive(Debug, thiserror::Error)]
enum UpstreamError {
    #[error("the connection broke before an answer came")]
    Broken(#[from] io::Error),
    #[error("the connection was closed without an answer")]
    Closed,
    #[error("no answer yet after {} s", PATIENCE.as_secs())]
    Slow,
    #[error("no answer within {} s", ANSWER_LIMIT.as_secs())]
    Silent,
}

/// Ends when both sides have ended the connection, or no upstream answers.
pub(crate) async fn pass(mut client: TcpStream, upstreams: &Upstreams) {
    let Ok(Ok(hello)) = timeout(HELLO_LIMIT, hear(&mut client)).await else {
        return;
    };
    let upstream = tokio::select! {
        upstream = first_of_all(&hello, upstreams) => upstream,
        () = hung_up(&client) => None,
    };
    if let Some(mut upstream) = upstream {
        // Whichever side ends the connection, the other side learns it by the end of the stream.
        let _ = copy_bidirectional(&mut client, &mut upstream).await;
    }
}

/// The client's first TLS record. After it, a client waits for the server.
async fn hear(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    keep_alive(client)?;
    let mut hello = vec![0; HEADER_LEN];
    client.read_exact(&mut hello).await?;
    let length = u16::from_be_bytes([hello[3], hello[4]]);
    if hello[0] != HANDSHAKE || length > MAX_RECORD_LEN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    hello.resize(HEADER_LEN + usize::from(length), 0);
    client.read_exact(&mut hello[HEADER_LEN..]).await?;
    Ok(hello)
}

async fn hung_up(client: &TcpStream) {
    let mut more = [0];
    while client.peek(&mut more).await.is_ok_and(|read| read > 0) {
        // It has more to say than it should before an answer.
        sleep(PATIENCE).await;
    }
}

/// Those that are not ready are asked only if none of the others answers, however slow these are.
async fn first_of_all(hello: &[u8], upstreams: &Upstreams) -> Option<TcpStream> {
    let [ready, others] = upstreams.by_readiness();
    match first_to_answer(hello, upstreams, ready).await {
        Some(upstream) => Some(upstream),
        None => first_to_answer(hello, upstreams, others).await,
    }
}

/// Asks one upstream after the other, and does not wait for those that are slow.
async fn first_to_answer(hello: &[u8], upstreams: &Upstreams, addresses: Vec<SocketAddr>) -> Option<TcpStream> {
    let mut left = addresses.into_iter();
    let mut asked = FuturesUnordered::new();
    let mut latest = None;
    loop {
        if let Some(next) = left.next() {
            asked.push(async move { (next, present(hello, next).await) });
            latest = Some(next);
        } else if asked.is_empty() {
            return None;
        }
        // Until one answers, or the one that was asked last fails or is slow.
        loop {
            match timeout(PATIENCE, asked.next()).await {
                Ok(Some((address, Ok(upstream)))) => {
                    answered(upstreams, address);
                    return Some(upstream);
                }
                Ok(Some((address, Err(error)))) => {
                    failed(upstreams, address, &error);
                    if Some(address) == latest || asked.is_empty() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    if let Some(address) = latest.take() {
                        failed(upstreams, address, &UpstreamError::Slow);
                    }
                    break;
                }
            }
        }
    }
}

async fn present(hello: &[u8], address: SocketAddr) -> Result<TcpStream, UpstreamError> {
    let presented = async {
        let mut upstream = TcpStream::connect(address).await?;
        keep_alive(&upstream)?;
        upstream.write_all(hello).await?;
        match upstream.peek(&mut [0]).await? {
            0 => Err(UpstreamError::Closed),
            _ => Ok(upstream),
        }
    };
    timeout(ANSWER_LIMIT, presented)
        .await
        .unwrap_or(Err(UpstreamError::Silent))
}

fn answered(upstreams: &Upstreams, address: SocketAddr) {
    if upstreams.answered(address) {
        info!(%address, "answers again");
    }
}

fn failed(upstreams: &Upstreams, address: SocketAddr, error: &UpstreamError) {
    if upstreams.failed(address) {
        warn!(%address, error = %Chain(error), "does not answer");
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))
}
