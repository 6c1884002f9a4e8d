use std::io;

use attestation::{Nonce, Purpose};

/// Draws the nonces over which this side wants Evidence.
///
/// Whoever is to appraise the Evidence draws the nonce: only then does it know that the Evidence is fresh.
#[tonic::async_trait]
pub trait NonceSource: Send + Sync {
    /// Draws one for a session of this purpose.
    ///
    /// # Errors
    /// When another program draws it and cannot be asked. There is no session then.
    async fn draw(&self, purpose: Purpose) -> io::Result<Nonce>;
}

/// This program appraises the Evidence alone.
pub(crate) struct OwnNonces;

#[tonic::async_trait]
impl NonceSource for OwnNonces {
    async fn draw(&self, _: Purpose) -> io::Result<Nonce> {
        Ok(Nonce::generate())
    }
}
