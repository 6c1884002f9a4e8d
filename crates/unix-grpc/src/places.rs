use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Pause after accepting failed, for instance because there were no file descriptors left: retrying at once would only burn CPU.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// An accepted connection, which holds one of the socket's places until it ends.
pub struct Connection {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

/// Accepts connections for `serve_with_incoming`, as long as there are places. Further callers wait until one is free: all of them are the
/// one user who may open the socket.
///
/// Ends when the receiver is dropped.
#[must_use]
pub fn incoming(listener: UnixListener, places: usize) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(places));
    tokio::spawn(async move {
        loop {
            let place = places.clone().acquire_owned().await;
            let place = place.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection = Connection { stream, _place: place };
                    if sender.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                Err(_) => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
            }
        }
    });
    ReceiverStream::new(receiver)
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_connection_for_which_there_is_no_place_waits_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let mut incoming = incoming(UnixListener::bind(&socket).unwrap(), 2);
        let _callers = [
            UnixStream::connect(&socket).await.unwrap(),
            UnixStream::connect(&socket).await.unwrap(),
            UnixStream::connect(&socket).await.unwrap(),
        ];
        let held = [incoming.next().await.unwrap(), incoming.next().await.unwrap()];
        let third = tokio::time::timeout(Duration::from_millis(200), incoming.next()).await;
        assert!(third.is_err());
        drop(held);
        assert!(incoming.next().await.unwrap().is_ok());
    }
}
