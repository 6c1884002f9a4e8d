use std::collections::VecDeque;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads a stream to its end and keeps at most its last `kept` bytes.
pub(crate) async fn read_tail(mut stream: impl AsyncRead + Unpin, kept: usize) -> io::Result<Vec<u8>> {
    let mut tail = VecDeque::new();
    let mut chunk = [0; 8 * 1024];
    loop {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Ok(tail.into());
        }
        tail.extend(&chunk[..read]);
        let surplus = tail.len().saturating_sub(kept);
        tail.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_end_is_kept() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        assert_eq!(read_tail(bytes.as_slice(), 1000).await.unwrap(), bytes[99_000..]);
        assert_eq!(read_tail(bytes.as_slice(), 1 << 20).await.unwrap(), bytes);
    }
}
