use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use attestation::{
    Attester, BindingParts, Direction, Evidence, Nonce, Purpose, ReportBinding, SessionEvidence, SessionParts,
    UnixTime, Verifiers,
};
use cluster_types::SealingPublicKey;
use digest::Digest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsStream;

use crate::error::HandshakeError;
use crate::frame::{self, Hello, Kind, Verdict};
use crate::nonce::NonceSource;
use crate::policy::PeerPolicy;
use crate::stream::{AttestedNode, AttestedStream};

const VERSION: u32 = 2;
/// Label of the TLS exporter. None of our other protocols uses it.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-constellation-attested-tls-v2";

/// The purposes that a side accepts.
pub(crate) enum Expected<'a> {
    /// The client names its purpose.
    Exactly(Purpose),
    /// The server offers several.
    OneOf(&'a [Purpose]),
}

/// One run of the exchange on one session.
pub(crate) struct Exchange<'a> {
    pub(crate) leaf: &'a Digest,
    pub(crate) attester: Option<&'a Arc<dyn Attester>>,
    pub(crate) peer: &'a PeerPolicy,
    pub(crate) nonces: &'a dyn NonceSource,
    pub(crate) sealing_key: Option<SealingPublicKey>,
    pub(crate) direction: Direction,
}

/// What both sides agreed on in their hellos.
struct Agreed {
    purpose: Purpose,
    own_nonce: Option<Nonce>,
    peer_nonce: Option<Nonce>,
    peer_sealing_key: Option<SealingPublicKey>,
    exporter: [u8; 32],
    peer_leaf: Digest,
}

/// What one side's hello says of its Evidence, and requests of the other's.
struct Said {
    nonce: Option<Nonce>,
    sealing_key: Option<SealingPublicKey>,
}

impl Exchange<'_> {
    pub(crate) async fn run<S>(
        self,
        expected: Expected<'_>,
        mut tls: TlsStream<S>,
    ) -> Result<AttestedStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let agreed = self.say_hello(&expected, &mut tls).await?;
        let (node, own_binding) = match self.direction {
            Direction::Client => {
                let node = self.appraise_peer(&agreed, &mut tls).await?;
                accept_peer(&mut tls).await?;
                let own_binding = self.attest(&agreed, &mut tls).await?;
                read_verdict(&mut tls).await?;
                (node, own_binding)
            }
            Direction::Server => {
                let own_binding = self.attest(&agreed, &mut tls).await?;
                read_verdict(&mut tls).await?;
                let node = self.appraise_peer(&agreed, &mut tls).await?;
                accept_peer(&mut tls).await?;
                (node, own_binding)
            }
        };
        Ok(AttestedStream::new(tls, agreed.purpose, node, own_binding))
    }

    /// Exchanges hellos, the client's first.
    async fn say_hello<S>(&self, expected: &Expected<'_>, tls: &mut TlsStream<S>) -> Result<Agreed, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (purpose, own_nonce, peer_hello) = match expected {
            Expected::Exactly(purpose) => {
                let own_nonce = self.draw_nonce(*purpose).await?;
                frame::write(tls, self.hello(*purpose, own_nonce.as_ref())).await?;
                let peer_hello = read_hello(tls).await?;
                (agreed_purpose(&peer_hello, &[*purpose])?, own_nonce, peer_hello)
            }
            Expected::OneOf(offered) => {
                let peer_hello = read_hello(tls).await?;
                let purpose = agreed_purpose(&peer_hello, offered)?;
                let own_nonce = self.draw_nonce(purpose).await?;
                frame::write(tls, self.hello(purpose, own_nonce.as_ref())).await?;
                (purpose, own_nonce, peer_hello)
            }
        };
        let Said { nonce, sealing_key } = self.said_by_peer(peer_hello)?;
        let (exporter, peer_leaf) = session(tls)?;
        Ok(Agreed {
            purpose,
            own_nonce,
            peer_nonce: nonce,
            peer_sealing_key: sealing_key,
            exporter,
            peer_leaf,
        })
    }

    async fn draw_nonce(&self, purpose: Purpose) -> Result<Option<Nonce>, HandshakeError> {
        match self.peer {
            PeerPolicy::Attested(_) => Ok(Some(self.nonces.draw(purpose).await.map_err(HandshakeError::NoNonce)?)),
            PeerPolicy::Unattested { .. } => Ok(None),
        }
    }

    fn hello(&self, purpose: Purpose, nonce: Option<&Nonce>) -> Kind {
        let accepts = match self.peer {
            PeerPolicy::Attested(verifiers) => verifiers.variants().map(|variant| variant.to_string()).collect(),
            PeerPolicy::Unattested { .. } => Vec::new(),
        };
        Kind::Hello(Hello {
            version: VERSION,
            purpose: purpose.to_string(),
            nonce: nonce.map(|nonce| nonce.as_bytes().to_vec()),
            accepts,
            sealing_key: self.sealing_key.map(|key| key.as_bytes().to_vec()),
        })
    }

    /// A peer that requests Evidence must get it. There is no session in which it was requested and not given.
    fn said_by_peer(&self, hello: Hello) -> Result<Said, HandshakeError> {
        let Hello {
            // Version and purpose were agreed upon before.
            version: _,
            purpose: _,
            nonce,
            accepts,
            sealing_key,
        } = hello;
        let sealing_key = sealing_key.map(|key| SealingPublicKey::try_from(key.as_slice()));
        let sealing_key = sealing_key.transpose()?;
        let Some(nonce) = nonce else {
            return Ok(Said {
                nonce: None,
                sealing_key,
            });
        };
        let nonce: [u8; 32] = nonce
            .as_slice()
            .try_into()
            .map_err(|_| HandshakeError::NonceLength(nonce.len()))?;
        let variant = self.attester.ok_or(HandshakeError::CannotAttest)?.variant();
        if !accepts.iter().any(|accepted| accepted == variant.as_str()) {
            return Err(HandshakeError::VariantNotAccepted(variant));
        }
        Ok(Said {
            nonce: Some(Nonce::new(nonce)),
            sealing_key,
        })
    }

    /// Sends Evidence if the peer requested it, and says to what it is bound.
    async fn attest<S>(&self, agreed: &Agreed, tls: &mut TlsStream<S>) -> Result<Option<ReportBinding>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (Some(nonce), Some(attester)) = (agreed.peer_nonce, self.attester) else {
            return Ok(None);
        };
        let parts = BindingParts::Session(SessionParts {
            direction: self.direction,
            exporter: agreed.exporter,
            attester_leaf: *self.leaf,
            verifier_leaf: agreed.peer_leaf,
            nonce,
            purpose: agreed.purpose,
            sealing_key: self.sealing_key,
        });
        let attester = attester.clone();
        let evidence = tokio::task::spawn_blocking(move || attester.attest(&parts))
            .await
            .map_err(|_| io::Error::other("the attesting task was cancelled"))??;
        frame::write(tls, Kind::Evidence(evidence.encode())).await?;
        Ok(Some(parts.binding()))
    }

    /// Reads and appraises the peer's Evidence if the policy requires it, and tells the peer if it is refused.
    async fn appraise_peer<S>(
        &self,
        agreed: &Agreed,
        tls: &mut TlsStream<S>,
    ) -> Result<Option<AttestedNode>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (PeerPolicy::Attested(verifiers), Some(nonce)) = (self.peer, agreed.own_nonce) else {
            return Ok(None);
        };
        let Kind::Evidence(evidence) = frame::read(tls).await? else {
            return Err(HandshakeError::UnexpectedMessage("evidence"));
        };
        let parts = SessionParts {
            direction: opposite(self.direction),
            exporter: agreed.exporter,
            attester_leaf: agreed.peer_leaf,
            verifier_leaf: *self.leaf,
            nonce,
            purpose: agreed.purpose,
            sealing_key: agreed.peer_sealing_key,
        };
        match appraise(verifiers, &evidence, parts) {
            Ok(node) => Ok(Some(node)),
            Err(error) => {
                let category = "attestation failed".to_owned();
                frame::write(
                    tls,
                    Kind::Verdict(Verdict {
                        accepted: false,
                        category,
                    }),
                )
                .await?;
                Err(error)
            }
        }
    }
}

fn appraise(verifiers: &Verifiers, evidence: &[u8], parts: SessionParts) -> Result<AttestedNode, HandshakeError> {
    let presented = SessionEvidence {
        parts,
        evidence: Evidence::parse(evidence)?,
    };
    let result = verifiers.appraise(&presented.evidence, &presented.binding(), now())?;
    Ok(AttestedNode::new(result.into_affirmed()?, presented))
}

/// The only place where sessions read the clock. The host may set it, so it only decides what expires.
fn now() -> UnixTime {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_seconds(since_1970.as_secs())
}

async fn accept_peer<S: AsyncRead + AsyncWrite + Unpin>(tls: &mut TlsStream<S>) -> io::Result<()> {
    frame::write(
        tls,
        Kind::Verdict(Verdict {
            accepted: true,
            category: String::new(),
        }),
    )
    .await
}

async fn read_verdict<S: AsyncRead + AsyncWrite + Unpin>(tls: &mut TlsStream<S>) -> Result<(), HandshakeError> {
    match frame::read(tls).await? {
        // One who accepts names no category.
        Kind::Verdict(Verdict {
            accepted: true,
            category: _,
        }) => Ok(()),
        Kind::Verdict(Verdict {
            accepted: false,
            category,
        }) => Err(HandshakeError::RefusedByPeer(category.chars().take(64).collect())),
        _ => Err(HandshakeError::UnexpectedMessage("verdict")),
    }
}

async fn read_hello<S: AsyncRead + AsyncWrite + Unpin>(tls: &mut TlsStream<S>) -> Result<Hello, HandshakeError> {
    match frame::read(tls).await? {
        Kind::Hello(Hello { version, .. }) if version != VERSION => Err(HandshakeError::Version(version)),
        Kind::Hello(hello) => Ok(hello),
        _ => Err(HandshakeError::UnexpectedMessage("hello")),
    }
}

fn agreed_purpose(hello: &Hello, offered: &[Purpose]) -> Result<Purpose, HandshakeError> {
    offered
        .iter()
        .copied()
        .find(|purpose| purpose.as_str() == hello.purpose)
        .ok_or_else(|| HandshakeError::Purpose(hello.purpose.chars().take(32).collect()))
}

/// The exporter and the peer's leaf, which both sides know and no one between them can choose.
fn session<S>(tls: &TlsStream<S>) -> Result<([u8; 32], Digest), HandshakeError> {
    let (exporter, certificates) = match tls {
        TlsStream::Client(client) => {
            let connection = client.get_ref().1;
            (
                connection.export_keying_material([0; 32], EXPORTER_LABEL, None),
                connection.peer_certificates(),
            )
        }
        TlsStream::Server(server) => {
            let connection = server.get_ref().1;
            (
                connection.export_keying_material([0; 32], EXPORTER_LABEL, None),
                connection.peer_certificates(),
            )
        }
    };
    let exporter = exporter.map_err(io::Error::other)?;
    let leaf = certificates
        .and_then(<[_]>::first)
        .ok_or(HandshakeError::UnexpectedMessage("certificate"))?;
    Ok((exporter, Digest::of(leaf)))
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Client => Direction::Server,
        Direction::Server => Direction::Client,
    }
}
