use std::io;
use std::time::Duration;

use attestation::{AppraisalError, AttestError, NotAffirmed, ParseEvidenceError};
use cluster_types::WrongLength;

/// A session could not be established.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection or the TLS handshake failed, or the peer sent something that is not a frame.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer took too long.
    #[error("the peer did not finish the handshake within {0:?}")]
    TimedOut(Duration),
    /// The peer sent a message that the protocol does not allow at this point.
    #[error("the peer sent an unexpected message, expected its {0}")]
    UnexpectedMessage(&'static str),
    /// The peer speaks another version.
    #[error("the peer speaks version {0} of the exchange, expected 2")]
    Version(u32),
    /// The peer requests a session for a purpose that is not offered here.
    #[error("the peer requests a session for {0:?}, which is not offered here")]
    Purpose(String),
    /// A nonce of the wrong length.
    #[error("the peer's nonce has {0} bytes, expected 32")]
    NonceLength(usize),
    /// A sealing key of the wrong length.
    #[error("the peer's hello is malformed")]
    SealingKey(#[from] WrongLength),
    /// Whoever appraises the peer drew no nonce.
    #[error("cannot draw a nonce for the peer's evidence")]
    NoNonce(#[source] io::Error),
    /// The peer requests Evidence, and this side cannot attest.
    #[error("the peer requests evidence, but this program does not attest")]
    CannotAttest,
    /// The peer does not accept our variant.
    #[error("the peer does not accept evidence of variant {0}")]
    VariantNotAccepted(cluster_types::Variant),
    /// Our own device failed.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The peer's Evidence cannot be read.
    #[error("cannot parse the peer's evidence")]
    Evidence(#[from] ParseEvidenceError),
    /// The peer's Evidence proves nothing.
    #[error(transparent)]
    Appraisal(#[from] AppraisalError),
    /// The peer is authentic, but not the expected one.
    #[error(transparent)]
    NotAffirmed(#[from] NotAffirmed),
    /// The peer refused us.
    #[error("the peer refused this side: {0}")]
    RefusedByPeer(String),
}
