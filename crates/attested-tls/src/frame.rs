use std::io;

use attestation::MAX_EVIDENCE_LEN;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Room for the protobuf fields around the longest Evidence.
const MAX_FRAME_LEN: usize = MAX_EVIDENCE_LEN + 1024;

/// One message of the exchange.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Frame {
    #[prost(oneof = "Kind", tags = "1, 2, 3")]
    pub(crate) kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Kind {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(bytes, tag = "2")]
    Evidence(Vec<u8>),
    #[prost(message, tag = "3")]
    Verdict(Verdict),
}

/// What a side requests from the session.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(string, tag = "2")]
    pub(crate) purpose: String,
    /// 32 bytes from a side that verifies the other, absent otherwise.
    #[prost(bytes = "vec", optional, tag = "3")]
    pub(crate) nonce: Option<Vec<u8>>,
    /// The variants of Evidence that it accepts.
    #[prost(string, repeated, tag = "4")]
    pub(crate) accepts: Vec<String>,
    /// 32 bytes from a side to which secrets can be sealed, absent otherwise. Its Evidence covers them.
    #[prost(bytes = "vec", optional, tag = "5")]
    pub(crate) sealing_key: Option<Vec<u8>>,
}

/// Whether a side continues.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Verdict {
    #[prost(bool, tag = "1")]
    pub(crate) accepted: bool,
    /// A category, never details: the peer is not yet trusted.
    #[prost(string, tag = "2")]
    pub(crate) category: String,
}

/// Writes one frame.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), kind: Kind) -> io::Result<()> {
    let body = Frame { kind: Some(kind) }.encode_to_vec();
    let length = u32::try_from(body.len()).expect("frames are far below 4 GiB");
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&body).await?;
    stream.flush().await
}

/// Reads one frame. A length above the limit is an error before anything is allocated for it.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Kind> {
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > MAX_FRAME_LEN {
        return Err(invalid(format!(
            "a frame has {length} bytes, at most {MAX_FRAME_LEN} are accepted"
        )));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let frame = Frame::decode(body.as_slice()).map_err(|error| invalid(error.to_string()))?;
    frame.kind.ok_or_else(|| invalid("a frame has no message".into()))
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(bytes: &[u8]) -> io::Result<Kind> {
        read(&mut &bytes[..]).await
    }

    #[tokio::test]
    async fn survives_a_round_trip() {
        let mut bytes = Vec::new();
        let verdict = Kind::Verdict(Verdict {
            accepted: true,
            category: String::new(),
        });
        write(&mut bytes, verdict.clone()).await.unwrap();
        assert_eq!(check(&bytes).await.unwrap(), verdict);
    }

    #[tokio::test]
    async fn a_long_frame_is_refused_before_it_arrives() {
        let error = check(&u32::MAX.to_be_bytes()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn an_empty_frame_is_refused() {
        assert_eq!(check(&[0; 4]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_cut_frame_is_refused() {
        assert_eq!(
            check(&[0, 0, 0, 9, 1]).await.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
