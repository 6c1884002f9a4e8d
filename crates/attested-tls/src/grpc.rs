//! Attested TLS underneath tonic.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use accept_loop::{Connection, accept};
use attestation::{Purpose, ReportBinding};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Uri};
use tonic::{Request, Status};

use crate::{AttestedNode, AttestedStream, Endpoint, HandshakeError};

/// What a handler can learn about its caller.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The caller, if it attested.
    pub node: Option<AttestedNode>,
    /// The purpose of the session.
    pub purpose: Purpose,
    /// What this side's Evidence was bound to, if the caller required some.
    pub own_binding: Option<ReportBinding>,
    /// The caller's address, for logs only.
    pub address: SocketAddr,
}

impl Connected for AttestedStream<Connection> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer {
            node: self.node().cloned(),
            purpose: self.purpose(),
            own_binding: self.own_binding(),
            address: self.transport().source(),
        }
    }
}

/// A gRPC channel in one session.
#[derive(Debug)]
pub struct AttestedChannel {
    /// It never reconnects, because what was proven holds only for this session.
    pub channel: Channel,
    /// The peer, if the policy required it to attest.
    pub node: Option<AttestedNode>,
    /// What this side's Evidence was bound to, if the peer required some.
    pub own_binding: Option<ReportBinding>,
}

/// The caller of a request, in a session for this purpose.
///
/// # Errors
/// `PERMISSION_DENIED` when the session is for another purpose.
pub fn peer<T>(request: &Request<T>, purpose: Purpose) -> Result<&Peer, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.filter(|peer| peer.purpose == purpose)
        .ok_or_else(|| Status::permission_denied("the session is for another purpose"))
}

/// The attested caller of a request, for this purpose.
///
/// # Errors
/// `PERMISSION_DENIED` when the caller did not attest, or attested for another purpose.
pub fn attested_node<T>(request: &Request<T>, purpose: Purpose) -> Result<&AttestedNode, Status> {
    let node = peer(request, purpose).ok().and_then(|peer| peer.node.as_ref());
    node.ok_or_else(|| Status::permission_denied("the session is not attested for this purpose"))
}

/// Accepts sessions for any of these purposes, for `serve_with_incoming`.
///
/// A peer that fails or stalls is logged. Open connections are bounded, and one source does not take the places of others.
pub fn incoming(
    listener: TcpListener,
    endpoint: Arc<Endpoint>,
    purposes: &'static [Purpose],
) -> ReceiverStream<io::Result<AttestedStream<Connection>>> {
    accept(listener, endpoint.limits().connections, move |stream| {
        let endpoint = endpoint.clone();
        async move { endpoint.accept(purposes, stream).await }
    })
}

/// Opens one session and a gRPC channel inside it.
///
/// # Errors
/// When the peer cannot be reached, or the session cannot be established.
pub async fn channel(endpoint: &Endpoint, purpose: Purpose, address: &str) -> Result<AttestedChannel, HandshakeError> {
    let connect = tokio::time::timeout(endpoint.limits().handshake, TcpStream::connect(address));
    let stream = connect
        .await
        .map_err(|_| HandshakeError::TimedOut(endpoint.limits().handshake))??;
    stream.set_nodelay(true)?;
    let session = endpoint.connect(purpose, stream).await?;
    let (node, own_binding) = (session.node().cloned(), session.own_binding());
    let mut session = Some(TokioIo::new(session));
    let connector = tower::service_fn(move |_: Uri| {
        let session = session
            .take()
            .ok_or_else(|| io::Error::other("an attested session cannot be reopened"));
        async move { session }
    });
    let channel = tonic::transport::Endpoint::from_static("http://attested.invalid")
        .connect_with_connector(connector)
        .await
        .map_err(io::Error::other)?;
    Ok(AttestedChannel {
        channel,
        node,
        own_binding,
    })
}
