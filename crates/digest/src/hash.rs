use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};

use crate::Digest;

/// A digest in the making. Whatever is written to it is hashed.
#[derive(Clone)]
pub struct Hasher(Context);

/// Hashes and counts what passes through to another writer.
pub struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
    len: u64,
}

impl Digest {
    /// The digest of everything a reader gives, and how many bytes that are.
    ///
    /// # Errors
    /// When reading fails.
    pub fn of_reader(mut reader: impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = Hasher::new();
        let mut len = 0;
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok((hasher.finish(), len)),
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    len += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The digest of a file of any size.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_file(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::of_reader(File::open(path)?)?.0)
    }
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Hashes some more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes so far.
    #[must_use]
    pub fn finish(self) -> Digest {
        let digest = self.0.finish();
        Digest::new(digest.as_ref().try_into().expect("SHA-256 gives 32 bytes (FIPS 180-4)"))
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> HashingWriter<W> {
    /// Hashes what is written to `inner` from now on.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Hasher::new(),
            len: 0,
        }
    }

    /// The writer, the digest of what was written to it, and its length.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.len)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Large enough that system calls do not count beside hashing.
const BUFFER_LEN: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes at a time.
    struct Slow(Vec<u8>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(&bytes[..bytes.len().min(3)])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_hashes_what_was_written_and_no_more() {
        let content = b"what passes through".repeat(100);
        let mut writer = HashingWriter::new(Slow(Vec::new()));
        writer.write_all(&content).unwrap();
        let (inner, digest, len) = writer.finish();
        assert_eq!(inner.0, content);
        assert_eq!((digest, len), (Digest::of(&content), content.len() as u64));
    }

    #[test]
    fn files_longer_than_the_buffer_are_hashed_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content = b"0123456789".repeat(BUFFER_LEN / 4);
        std::fs::write(&path, &content).unwrap();
        assert_eq!(Digest::of_file(&path).unwrap(), Digest::of(&content));
        assert!(Digest::of_file(folder.path().join("none")).is_err());
    }
}
