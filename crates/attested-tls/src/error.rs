use std::io;
use std::time::Duration;

use attestation::{AppraisalError, AttestError, NotAffirmed, ParseEvidenceError};

/// A session that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The channel or the TLS handshake failed, or the peer sent something that is no frame.
    #[error("the channel failed")]
    Io(#[from] io::Error),
    /// The peer took too long.
    #[error("the peer did not finish the handshake within {0:?}")]
    TimedOut(Duration),
    /// The peer sent another message than the protocol has at this point.
    #[error("the peer sent an unexpected message, expected its {0}")]
    UnexpectedMessage(&'static str),
    /// The peer speaks another version.
    #[error("the peer speaks version {0} of the exchange, expected 1")]
    Version(u32),
    /// The peer wants the session for something that is not offered here.
    #[error("the peer wants the session for {0:?}, which is not offered here")]
    Purpose(String),
    /// A nonce of the wrong length.
    #[error("the peer's nonce has {0} bytes, expected 32")]
    NonceLength(usize),
    /// The peer wants Evidence and we cannot give any.
    #[error("the peer asks for evidence, but this program does not attest")]
    CannotAttest,
    /// The peer does not accept our variant.
    #[error("the peer does not accept evidence of variant {0}")]
    VariantNotAccepted(cluster_types::Variant),
    /// Our own device failed.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The peer's Evidence cannot be read.
    #[error("the peer's evidence cannot be read")]
    Evidence(#[from] ParseEvidenceError),
    /// The peer's Evidence proves nothing.
    #[error(transparent)]
    Appraisal(#[from] AppraisalError),
    /// The peer is authentic, but not what it should be.
    #[error(transparent)]
    NotAffirmed(#[from] NotAffirmed),
    /// The peer refused us.
    #[error("the peer refused this side: {0}")]
    RefusedByPeer(String),
}
