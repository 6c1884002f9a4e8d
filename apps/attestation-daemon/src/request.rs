use attestation::{Direction, Nonce, Purpose, SessionParts, UnknownPurpose};
use digest::Digest;
use grpc_api::attestation::{AttestNonceRequest, AttestSessionRequest};

/// A request that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidRequest {
    #[error("purpose is invalid")]
    Purpose(#[from] UnknownPurpose),
    #[error("{field} has {actual} bytes, expected 32")]
    Length { field: &'static str, actual: usize },
}

/// The session, whose server asks.
pub(crate) fn parse_session(request: AttestSessionRequest) -> Result<SessionParts, InvalidRequest> {
    let AttestSessionRequest {
        purpose,
        exporter,
        own_leaf,
        peer_leaf,
        nonce,
    } = request;
    let purpose: Purpose = purpose.parse()?;
    Ok(SessionParts {
        direction: Direction::Server,
        exporter: bytes("exporter", &exporter)?,
        attester_leaf: Digest::new(bytes("own_leaf", &own_leaf)?),
        verifier_leaf: Digest::new(bytes("peer_leaf", &peer_leaf)?),
        nonce: Nonce::new(bytes("nonce", &nonce)?),
        purpose,
        sealing_key: None,
    })
}

pub(crate) fn parse_nonce(request: AttestNonceRequest) -> Result<Nonce, InvalidRequest> {
    let AttestNonceRequest { nonce } = request;
    Ok(Nonce::new(bytes("nonce", &nonce)?))
}

fn bytes(field: &'static str, bytes: &[u8]) -> Result<[u8; 32], InvalidRequest> {
    bytes.try_into().map_err(|_| InvalidRequest::Length {
        field,
        actual: bytes.len(),
    })
}

#[cfg(test)]
mod tests {
    use error_report::Chain;

    use super::*;

    fn request() -> AttestSessionRequest {
        AttestSessionRequest {
            purpose: "join".into(),
            exporter: vec![1; 32],
            own_leaf: vec![2; 32],
            peer_leaf: vec![3; 32],
            nonce: vec![4; 32],
        }
    }

    #[test]
    fn a_caller_is_the_server_of_its_session_and_names_no_sealing_key() {
        let expected = SessionParts {
            direction: Direction::Server,
            exporter: [1; 32],
            attester_leaf: Digest::new([2; 32]),
            verifier_leaf: Digest::new([3; 32]),
            nonce: Nonce::new([4; 32]),
            purpose: Purpose::Join,
            sealing_key: None,
        };
        assert_eq!(parse_session(request()).unwrap(), expected);
    }

    #[test]
    fn bad_input_to_each_field_gives_one_error_that_names_it() {
        type Change = fn(&mut AttestSessionRequest);
        let cases: [(Change, &str); 6] = [
            (|r| r.purpose = "JOIN".into(), "purpose is invalid: \"JOIN\" is not"),
            (|r| r.purpose.clear(), "purpose is invalid: \"\" is not"),
            (|r| r.exporter.clear(), "exporter has 0 bytes"),
            (|r| r.own_leaf.push(0), "own_leaf has 33 bytes"),
            (|r| r.peer_leaf.truncate(31), "peer_leaf has 31 bytes"),
            (|r| r.nonce.clear(), "nonce has 0 bytes"),
        ];
        for (change, expected) in cases {
            let mut request = request();
            change(&mut request);
            let error = Chain(&parse_session(request).unwrap_err()).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = parse_nonce(AttestNonceRequest { nonce: vec![0; 31] }).unwrap_err();
        assert_eq!(error.to_string(), "nonce has 31 bytes, expected 32");
    }
}
