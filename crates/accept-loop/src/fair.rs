use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::warn;

/// Pause after accepting failed, for instance because there were no file descriptors left: retrying at once would only burn CPU.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// A listener with a number of places for open connections, of which every source gets its share: when all are taken, a new connection
/// ends the oldest of the source that holds the most. Whoever opens many connections, quickly or to hold them, costs bounded memory and
/// keeps nobody else away who holds fewer.
pub struct FairListener {
    listener: TcpListener,
    places: usize,
    /// The oldest first.
    open: Vec<Place>,
}

struct Place {
    source: IpAddr,
    held: Weak<()>,
    lost: CancellationToken,
}

/// An accepted connection, on which everything fails once it has lost its place.
pub struct Connection {
    stream: TcpStream,
    source: SocketAddr,
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Arc<()>,
}

impl FairListener {
    /// Accepts connections of this listener.
    #[must_use]
    pub fn new(listener: TcpListener, places: usize) -> Self {
        Self {
            listener,
            places,
            open: Vec::new(),
        }
    }

    /// The next connection.
    ///
    /// # Cancel safety
    /// No connection is lost.
    pub async fn next(&mut self) -> Connection {
        let (stream, source) = loop {
            match self.listener.accept().await {
                Ok(accepted) => break accepted,
                Err(error) => {
                    warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            }
        };
        // Without it, answers wait for more to send. A connection that is already broken says so when it is used.
        let _ = stream.set_nodelay(true);
        self.open.retain(|place| place.held.strong_count() > 0);
        while self.open.len() >= self.places {
            self.open.remove(most_of_one_source(&self.open)).lost.cancel();
        }
        let (held, lost) = (Arc::new(()), CancellationToken::new());
        self.open.push(Place {
            source: source.ip(),
            held: Arc::downgrade(&held),
            lost: lost.clone(),
        });
        Connection {
            stream,
            source,
            lost: Box::pin(lost.cancelled_owned()),
            _place: held,
        }
    }
}

/// The index of the oldest place of the source that holds the most; of several, of the one whose oldest is the oldest. There is one.
fn most_of_one_source(open: &[Place]) -> usize {
    let mut held: HashMap<IpAddr, usize> = HashMap::new();
    for place in open {
        *held.entry(place.source).or_default() += 1;
    }
    let most = held.values().copied().max().unwrap_or_default();
    open.iter()
        .position(|place| held[&place.source] == most)
        .unwrap_or_default()
}

impl Listener for FairListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let connection = self.next().await;
        let source = connection.source;
        (connection, source)
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
    /// Who opened it.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.source
    }

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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;

    use super::*;

    const PLACES: usize = 4;

    /// A server that says what it hears.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut listener = FairListener::new(listener, PLACES);
        tokio::spawn(async move {
            loop {
                let (mut reader, mut writer) = tokio::io::split(listener.next().await);
                tokio::spawn(async move { tokio::io::copy(&mut reader, &mut writer).await });
            }
        });
        address
    }

    /// Connects from the loopback address that ends like this, and waits until the connection has a place.
    async fn connect(from: u8, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, from], 0).into()).unwrap();
        let mut stream = socket.connect(to).await.unwrap();
        assert!(is_open(&mut stream).await);
        stream
    }

    async fn is_open(stream: &mut TcpStream) -> bool {
        let mut answer = [0];
        let echoed = async {
            stream.write_all(b"?").await?;
            stream.read_exact(&mut answer).await
        };
        let echoed = tokio::time::timeout(Duration::from_secs(60), echoed).await.unwrap();
        echoed.is_ok()
    }

    #[tokio::test]
    async fn whoever_holds_the_most_loses_its_oldest_connection() {
        let server = echo().await;
        let mut held = Vec::new();
        for _ in 0..PLACES {
            held.push(connect(1, server).await);
        }
        let mut other = connect(2, server).await;
        assert!(!is_open(&mut held[0]).await);
        for stream in &mut held[1..] {
            assert!(is_open(stream).await);
        }
        assert!(is_open(&mut other).await);
    }

    #[tokio::test]
    async fn a_flood_ends_nobody_elses_connection() {
        let server = echo().await;
        let mut quiet = [connect(2, server).await, connect(3, server).await];
        let mut flood = Vec::new();
        for _ in 0..20 * PLACES {
            flood.push(connect(1, server).await);
        }
        for stream in &mut quiet {
            assert!(is_open(stream).await);
        }
        assert!(is_open(&mut flood.pop().unwrap()).await);
        assert!(!is_open(&mut flood[0]).await);
    }

    #[tokio::test]
    async fn of_sources_with_as_many_each_the_oldest_connection_goes() {
        let server = echo().await;
        let mut held = Vec::new();
        for source in 1..=4 {
            held.push(connect(source, server).await);
        }
        let mut fifth = connect(5, server).await;
        assert!(!is_open(&mut held[0]).await);
        assert!(is_open(&mut held[1]).await && is_open(&mut fifth).await);
    }
}
