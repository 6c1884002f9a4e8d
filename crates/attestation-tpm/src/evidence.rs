use measurements::{PcrIndex, PcrValue, PcrValues};
use prost::Message;

/// A quote, the key that signed it and the registers it is about.
///
/// The body of an [`attestation::Evidence`] of every TPM variant is the protobuf message
/// `{ 1: TPMT_PUBLIC of the attestation key, 2: TPMS_ATTEST, 3: TPMT_SIGNATURE, 4: repeated { 1: index, 2: SHA-256 value } }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmEvidence {
    /// `TPMT_PUBLIC` of the attestation key.
    pub key: Vec<u8>,
    /// `TPMS_ATTEST`, exactly as it was signed.
    pub attest: Vec<u8>,
    /// `TPMT_SIGNATURE` over `attest`.
    pub signature: Vec<u8>,
    /// The quoted registers.
    pub pcrs: PcrValues,
}

/// A body that is not TPM Evidence.
#[derive(Debug, thiserror::Error)]
pub enum MalformedEvidence {
    /// Not the protobuf message.
    #[error("the evidence body is malformed")]
    Encoding(#[from] prost::DecodeError),
    /// A register that does not exist, appears twice or has no SHA-256 value.
    #[error("entry {0} of the evidence's PCR list is malformed or a duplicate")]
    Pcr(usize),
}

#[derive(Clone, PartialEq, Message)]
struct EvidenceMessage {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    attest: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    signature: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    pcrs: Vec<PcrMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct PcrMessage {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

impl TpmEvidence {
    /// The protobuf message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let pcr = |(index, value): (&PcrIndex, &PcrValue)| PcrMessage {
            index: index.get().into(),
            value: value.as_bytes().to_vec(),
        };
        EvidenceMessage {
            key: self.key.clone(),
            attest: self.attest.clone(),
            signature: self.signature.clone(),
            pcrs: self.pcrs.iter().map(pcr).collect(),
        }
        .encode_to_vec()
    }

    /// Reads the body of an Evidence.
    ///
    /// # Errors
    /// When it is not the message, or lists a register wrongly.
    pub fn parse(body: &[u8]) -> Result<Self, MalformedEvidence> {
        let EvidenceMessage {
            key,
            attest,
            signature,
            pcrs: entries,
        } = EvidenceMessage::decode(body)?;
        let mut pcrs = PcrValues::new();
        for (entry, pcr) in entries.iter().enumerate() {
            let (index, value) = parse_pcr(pcr).ok_or(MalformedEvidence::Pcr(entry))?;
            if pcrs.insert(index, value).is_some() {
                return Err(MalformedEvidence::Pcr(entry));
            }
        }
        Ok(Self {
            key,
            attest,
            signature,
            pcrs,
        })
    }
}

fn parse_pcr(pcr: &PcrMessage) -> Option<(PcrIndex, PcrValue)> {
    let PcrMessage { index, value } = pcr;
    let index = PcrIndex::try_from(u8::try_from(*index).ok()?).ok()?;
    let value = PcrValue::new(value.as_slice().try_into().ok()?);
    Some((index, value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pcrs: Vec<PcrMessage>) -> Result<TpmEvidence, MalformedEvidence> {
        TpmEvidence::parse(
            &EvidenceMessage {
                pcrs,
                ..EvidenceMessage::default()
            }
            .encode_to_vec(),
        )
    }

    fn pcr(index: u32, length: usize) -> PcrMessage {
        PcrMessage {
            index,
            value: vec![7; length],
        }
    }

    #[test]
    fn survives_a_round_trip() {
        let evidence = check(vec![pcr(0, 32), pcr(23, 32)]).unwrap();
        assert_eq!(TpmEvidence::parse(&evidence.encode()).unwrap(), evidence);
    }

    #[test]
    fn wrong_registers_are_refused() {
        for (pcrs, entry) in [
            (vec![pcr(24, 32)], 0),
            (vec![pcr(256, 32)], 0),
            (vec![pcr(1, 32), pcr(2, 31)], 1),
            (vec![pcr(1, 48)], 0),
            (vec![pcr(1, 32), pcr(1, 32)], 1),
        ] {
            assert!(matches!(check(pcrs), Err(MalformedEvidence::Pcr(found)) if found == entry));
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = TpmEvidence::parse(&bytes);
        }
    }
}
