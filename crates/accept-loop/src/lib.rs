//! Accepts connections with a bounded number of handshakes at once.
//!
//! A peer that fails or stalls occupies one place for as long as its handshake may take. It is logged and never stops the
//! server. The caller decides what a handshake is and how long it may take.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use error_report::Chain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};

/// The most finished handshakes that wait for the server to take them.
const BACKLOG: usize = 16;
/// Pause after accepting failed, for instance because there were no file descriptors left: retrying at once would only burn CPU.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// Accepts connections, performs `handshake` on each, and yields those that succeeded, for `serve_with_incoming`.
///
/// Ends when the receiver is dropped.
pub fn accept<S, E, F>(
    listener: TcpListener,
    concurrent_handshakes: usize,
    handshake: impl Fn(TcpStream) -> F + Send + 'static,
) -> ReceiverStream<io::Result<S>>
where
    S: Send + 'static,
    E: Error + Send + 'static,
    F: Future<Output = Result<S, E>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let places = Arc::new(Semaphore::new(concurrent_handshakes));
    tokio::spawn(async move {
        loop {
            let place = places
                .clone()
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // The server has ended. Without this, the port would stay open.
                () = sender.closed() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let (handshake, sender) = (handshake(stream), sender.clone());
            tokio::spawn(async move {
                let result = handshake.await;
                drop(place);
                match result {
                    Ok(session) => drop(sender.send(Ok(session)).await),
                    Err(error) => info!(%address, error = %Chain(&error), "handshake failed"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}
