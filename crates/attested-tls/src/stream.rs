use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use attestation::{Affirmed, AttestationResult, AttestedIdentity, Purpose, ReportBinding, SessionEvidence};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

/// The proof that the peer of one session attested for one purpose, and that the verdict was affirming.
///
/// # Security
/// It says what software the peer runs and which machine it is. It does not say which role the peer may have.
#[derive(Clone, Debug)]
pub struct AttestedNode {
    affirmed: Affirmed,
    presented: Arc<SessionEvidence>,
}

impl AttestedNode {
    pub(crate) fn new(affirmed: Affirmed, presented: SessionEvidence) -> Self {
        Self {
            affirmed,
            presented: Arc::new(presented),
        }
    }

    /// The peer's attested identity.
    #[must_use]
    pub fn identity(&self) -> AttestedIdentity {
        self.affirmed.identity()
    }

    /// The purpose of the session.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.presented.parts.purpose
    }

    /// What the peer presented, for whoever appraises it again.
    #[must_use]
    pub fn presented(&self) -> &SessionEvidence {
        &self.presented
    }

    /// Everything the appraisal found.
    #[must_use]
    pub fn result(&self) -> &AttestationResult {
        self.affirmed.result()
    }
}

/// A session after the exchange, ready for application bytes.
#[derive(Debug)]
pub struct AttestedStream<S> {
    tls: TlsStream<S>,
    purpose: Purpose,
    node: Option<AttestedNode>,
    own_binding: Option<ReportBinding>,
}

impl<S> AttestedStream<S> {
    pub(crate) fn new(
        tls: TlsStream<S>,
        purpose: Purpose,
        node: Option<AttestedNode>,
        own_binding: Option<ReportBinding>,
    ) -> Self {
        Self {
            tls,
            purpose,
            node,
            own_binding,
        }
    }

    /// The peer, if the policy required it to attest.
    #[must_use]
    pub fn node(&self) -> Option<&AttestedNode> {
        self.node.as_ref()
    }

    /// What this side's Evidence was bound to, if the peer required some.
    #[must_use]
    pub fn own_binding(&self) -> Option<ReportBinding> {
        self.own_binding
    }

    /// The purpose that both sides agreed on.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The transport below TLS.
    pub(crate) fn transport(&self) -> &S {
        self.tls.get_ref().0
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for AttestedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for AttestedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
