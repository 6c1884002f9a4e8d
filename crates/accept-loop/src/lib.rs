//! Accepts connections of unknown callers, with a bounded number of places.
//!
//! A caller that fails, stalls or floods takes places from itself, or from whoever holds the most. It is logged and never stops the server.
//! What a handshake is and how long it may take, the caller of this crate decides.

mod fair;

use std::convert::Infallible;
use std::error::Error;
use std::io;

use error_report::Chain;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::info;

pub use fair::{Connection, FairListener};

/// The most finished handshakes that wait for the server to take them.
const BACKLOG: usize = 16;

/// Accepts connections, performs `handshake` on each, and yields those that succeeded, for `serve_with_incoming`. A connection holds one
/// of the places from its first byte to its last.
///
/// Ends when the receiver is dropped.
pub fn accept<S, E, F>(
    listener: TcpListener,
    places: usize,
    handshake: impl Fn(Connection) -> F + Send + 'static,
) -> ReceiverStream<io::Result<S>>
where
    S: Send + 'static,
    E: Error + Send + 'static,
    F: Future<Output = Result<S, E>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let mut listener = FairListener::new(listener, places);
        loop {
            let connection = tokio::select! {
                connection = listener.next() => connection,
                // The server has ended. Without this, the port would stay open.
                () = sender.closed() => return,
            };
            let address = connection.source();
            let (handshake, sender) = (handshake(connection), sender.clone());
            tokio::spawn(async move {
                match handshake.await {
                    Ok(session) => drop(sender.send(Ok(session)).await),
                    Err(error) => info!(%address, error = %Chain(&error), "handshake failed"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

/// The same for a protocol without a handshake.
pub fn connections(listener: TcpListener, places: usize) -> ReceiverStream<io::Result<Connection>> {
    accept(listener, places, |connection| async { Ok::<_, Infallible>(connection) })
}
