use std::fmt;
use std::io::{self, Write};

use aws_lc_rs::digest::{Context, SHA256};

/// A SHA-256 digest, printed as OCI does: `sha256:` and 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(bytes);
        Self::from_context(context)
    }

    /// The digest without its algorithm, as in the names of blobs.
    pub(crate) fn hex(&self) -> String {
        hex::encode(self.0)
    }

    fn from_context(context: Context) -> Self {
        Self(
            context
                .finish()
                .as_ref()
                .try_into()
                .expect("a SHA-256 digest has 32 bytes"),
        )
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

/// Counts and hashes what is written to `inner`.
pub(crate) struct Hashing<W> {
    inner: W,
    context: Context,
    len: u64,
}

impl<W: Write> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self {
            inner,
            context: Context::new(&SHA256),
            len: 0,
        }
    }

    pub(crate) fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_context(self.context), self.len)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.context.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
