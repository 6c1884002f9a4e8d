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
use tracing::{debug, warn};

/// Pause after accepting failed, for instance because there were no file descriptors left: retrying at once would only burn CPU.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// A listener with a number of places for open connections, of which every source gets its share: when all are taken, a new connection
/// ends the oldest of the source that holds the most, and is refused if it is of such a source itself. Whoever opens many connections,
/// quickly or to hold them, costs bounded memory and work, and keeps nobody else away who holds fewer.
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
        loop {
            let (stream, source) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                    continue;
                }
            };
            let Some((held, lost)) = self.take_place(source.ip()) else {
                // Dropping the stream closes it.
                debug!(%source, "this source holds the most connections, and no place is free");
                continue;
            };
            // Without it, answers wait for more to send. A connection that is already broken says so when it is used.
            let _ = stream.set_nodelay(true);
            return Connection {
                stream,
                source,
                lost: Box::pin(lost.cancelled_owned()),
                _place: held,
            };
        }
    }

    /// Nothing if no place is free and this source holds the most.
    fn take_place(&mut self, source: IpAddr) -> Option<(Arc<()>, CancellationToken)> {
        self.open.retain(|place| place.held.strong_count() > 0);
        if self.open.len() >= self.places {
            let mut counts: HashMap<IpAddr, usize> = HashMap::new();
            for place in &self.open {
                *counts.entry(place.source).or_default() += 1;
            }
            let most = counts.values().copied().max().unwrap_or_default();
            if counts.get(&source).copied().unwrap_or_default() >= most {
                return None;
            }
            let oldest = self.open.iter().position(|place| counts[&place.source] == most)?;
            self.open.remove(oldest).lost.cancel();
        }
        let (held, lost) = (Arc::new(()), CancellationToken::new());
        self.open.push(Place {
            source,
            held: Arc::downgrade(&held),
            lost: lost.clone(),
        });
        Some((held, lost))
    }
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

    /// Connects from the loopback address that ends like this.
    async fn connect(from: u8, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, from], 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    /// A connection that has a place.
    async fn open(from: u8, to: SocketAddr) -> TcpStream {
        let mut stream = connect(from, to).await;
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
    async fn whoever_holds_the_most_loses_its_oldest_connection_to_others() {
        let server = echo().await;
        let mut held = Vec::new();
        for _ in 0..PLACES {
            held.push(open(1, server).await);
        }
        let mut other = open(2, server).await;
        assert!(!is_open(&mut held[0]).await);
        for stream in &mut held[1..] {
            assert!(is_open(stream).await);
        }
        assert!(is_open(&mut other).await);
    }

    #[tokio::test]
    async fn whoever_holds_the_most_gets_no_more() {
        let server = echo().await;
        let mut held = Vec::new();
        for _ in 0..PLACES {
            held.push(open(1, server).await);
        }
        assert!(!is_open(&mut connect(1, server).await).await);
        for stream in &mut held {
            assert!(is_open(stream).await);
        }
        // A place that is given back can be taken again.
        drop(held.pop());
        let again = async {
            while !is_open(&mut connect(1, server).await).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), again).await.unwrap();
    }

    #[tokio::test]
    async fn a_flood_ends_nobody_elses_connection() {
        let server = echo().await;
        let mut quiet = [open(2, server).await, open(3, server).await];
        for _ in 0..20 * PLACES {
            drop(connect(1, server).await);
        }
        for stream in &mut quiet {
            assert!(is_open(stream).await);
        }
    }

    #[tokio::test]
    async fn of_sources_with_as_many_each_the_oldest_connection_goes() {
        let server = echo().await;
        let mut held = Vec::new();
        for source in 1..=4 {
            held.push(open(source, server).await);
        }
        let mut fifth = open(5, server).await;
        assert!(!is_open(&mut held[0]).await);
        assert!(is_open(&mut held[1]).await && is_open(&mut fifth).await);
    }
}
