use std::sync::Arc;
use std::time::Duration;

use attestation::{Attester, Direction, Purpose};
use cluster_types::SealingPublicKey;
use digest::Digest;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::error::HandshakeError;
use crate::exchange::{Exchange, Expected};
use crate::leaf::Leaf;
use crate::nonce::{NonceSource, OwnNonces};
use crate::policy::PeerPolicy;
use crate::stream::AttestedStream;

/// Limits on what a peer can make us hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the TLS handshake and the exchange together. TPMs under emulation are slow.
    pub handshake: Duration,
    /// For the TLS handshake alone, which needs no TPM: how soon a peer must answer at all. A value above `handshake` has no
    /// effect.
    pub tls: Duration,
    /// How many connections a server holds open at once, from the first byte of a handshake to the end of the session.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(60),
            tls: Duration::from_secs(60),
            connections: 128,
        }
    }
}

/// One side of attested TLS: its key, how it attests and whom it accepts.
#[derive(Clone)]
pub struct Endpoint {
    leaf: Digest,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    attester: Option<Arc<dyn Attester>>,
    peer: PeerPolicy,
    nonces: Arc<dyn NonceSource>,
    sealing_key: Option<SealingPublicKey>,
    limits: Limits,
}

impl Endpoint {
    /// Generates a fresh key and certificate. `attester` is `None` for programs that do not run on a node.
    #[must_use]
    pub fn new(attester: Option<Arc<dyn Attester>>, peer: PeerPolicy) -> Self {
        let leaf = Leaf::generate();
        Self {
            leaf: leaf.digest(),
            server: leaf.server_config(),
            client: leaf.client_config(),
            attester,
            peer,
            nonces: Arc::new(OwnNonces),
            sealing_key: None,
            limits: Limits::default(),
        }
    }

    /// Requests Evidence over nonces from elsewhere: another program will appraise it too.
    #[must_use]
    pub fn with_nonces(mut self, nonces: Arc<dyn NonceSource>) -> Self {
        self.nonces = nonces;
        self
    }

    /// Offers a key to which secrets can be sealed. This side's Evidence covers it.
    #[must_use]
    pub fn with_sealing_key(mut self, key: SealingPublicKey) -> Self {
        self.sealing_key = Some(key);
        self
    }

    /// Sets other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The current limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Opens a session for one purpose over a connected stream.
    ///
    /// # Errors
    /// When the peer does not finish in time, is not what the policy wants, or refuses this side.
    ///
    /// # Cancel safety
    /// Dropping the future closes the stream; nothing else is left.
    pub async fn connect<S>(&self, purpose: Purpose, stream: S) -> Result<AttestedStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let handshake = async {
            let tls = TlsConnector::from(self.client.clone()).connect(Leaf::server_name(), stream);
            let tls = in_time(self.limits.tls, tls).await?;
            self.exchange(Direction::Client, Expected::Exactly(purpose), TlsStream::Client(tls))
                .await
        };
        in_time(self.limits.handshake, handshake).await
    }

    /// Accepts a session for any of these purposes over a connected stream.
    ///
    /// # Errors
    /// When the peer does not finish in time, is not what the policy wants, or refuses this side.
    ///
    /// # Cancel safety
    /// Dropping the future closes the stream; nothing else is left.
    pub async fn accept<S>(&self, purposes: &[Purpose], stream: S) -> Result<AttestedStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let handshake = async {
            let tls = in_time(self.limits.tls, TlsAcceptor::from(self.server.clone()).accept(stream)).await?;
            self.exchange(Direction::Server, Expected::OneOf(purposes), TlsStream::Server(tls))
                .await
        };
        in_time(self.limits.handshake, handshake).await
    }

    async fn exchange<S>(
        &self,
        direction: Direction,
        expected: Expected<'_>,
        tls: TlsStream<S>,
    ) -> Result<AttestedStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        Exchange {
            leaf: &self.leaf,
            attester: self.attester.as_ref(),
            peer: &self.peer,
            nonces: &*self.nonces,
            sealing_key: self.sealing_key,
            direction,
        }
        .run(expected, tls)
        .await
    }
}

async fn in_time<T, E: Into<HandshakeError>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, HandshakeError> {
    match timeout(limit, work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(HandshakeError::TimedOut(limit)),
    }
}
