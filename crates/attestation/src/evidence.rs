use cluster_types::Variant;
use prost::Message;

/// The longest encoded Evidence that is read, in bytes. Real ones have a few KiB.
pub const MAX_EVIDENCE_LEN: usize = 64 * 1024;

/// Signed Claims of an Attester, and what is needed to parse them (RFC 9334 section 8.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Which technology made it. Selects among the verifiers we have; it cannot select a weaker check.
    pub variant: Variant,
    /// The technology's own format.
    pub body: Vec<u8>,
}

/// Bytes that are not encoded Evidence.
#[derive(Debug, thiserror::Error)]
pub enum ParseEvidenceError {
    /// Longer than any real Evidence.
    #[error("the evidence has {actual} bytes, at most {MAX_EVIDENCE_LEN} are accepted")]
    TooLong {
        /// Length in bytes.
        actual: usize,
    },
    /// Not the protobuf message.
    #[error("the evidence is malformed")]
    Encoding(#[from] prost::DecodeError),
    /// Of a technology we do not know.
    #[error("the evidence is of an unknown variant")]
    Variant(#[from] cluster_types::ParseVariantError),
}

#[derive(Clone, PartialEq, Message)]
struct EvidenceMessage {
    #[prost(string, tag = "1")]
    variant: String,
    #[prost(bytes = "vec", tag = "2")]
    body: Vec<u8>,
}

impl Evidence {
    /// The protobuf message `{ 1: variant (string), 2: body (bytes) }`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        EvidenceMessage {
            variant: self.variant.to_string(),
            body: self.body.clone(),
        }
        .encode_to_vec()
    }

    /// Reads an encoded Evidence.
    ///
    /// # Errors
    /// When the bytes are too many, not the message, or name an unknown variant.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseEvidenceError> {
        if bytes.len() > MAX_EVIDENCE_LEN {
            return Err(ParseEvidenceError::TooLong { actual: bytes.len() });
        }
        let EvidenceMessage { variant, body } = EvidenceMessage::decode(bytes)?;
        Ok(Self {
            variant: variant.parse()?,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn survives_a_round_trip() {
        let evidence = Evidence {
            variant: Variant::ALL[0],
            body: vec![1, 2, 3],
        };
        assert_eq!(Evidence::parse(&evidence.encode()).unwrap(), evidence);
    }

    #[test]
    fn unknown_variants_are_refused() {
        let message = EvidenceMessage {
            variant: "dummy".into(),
            body: vec![],
        };
        assert!(matches!(
            Evidence::parse(&message.encode_to_vec()),
            Err(ParseEvidenceError::Variant(_))
        ));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        for garbage in [&[0xff][..], &[0x0a, 5, b'x']] {
            assert!(matches!(Evidence::parse(garbage), Err(ParseEvidenceError::Encoding(_))));
        }
    }

    #[test]
    fn long_evidence_is_refused_unread() {
        let error = Evidence::parse(&vec![0; MAX_EVIDENCE_LEN + 1]).unwrap_err();
        assert!(matches!(error, ParseEvidenceError::TooLong { .. }));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Evidence::parse(&bytes);
        }
    }
}
