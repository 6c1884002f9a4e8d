//! Callers' requests, parsed.

use attestation::{
    Direction, Evidence, Nonce, ParseEvidenceError, Purpose, SessionEvidence, SessionParts, UnknownPurpose,
};
use cluster_types::{DiskUuid, MeasurementSalt, NodeRole, ParseDiskUuidError, SealingPublicKey};
use digest::Digest;
use grpc_api::kms;

/// A node that wants secrets, and what the caller says it may be appraised by.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) session: SessionEvidence,
    pub(crate) sealing_key: SealingPublicKey,
    pub(crate) policy: Vec<u8>,
    pub(crate) measurement_salt: MeasurementSalt,
    pub(crate) wanted: Wanted,
}

/// What the node wants.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// To become a worker.
    Worker,
    /// To become a control plane, with this role grant.
    ControlPlane(Vec<u8>),
    /// To open this disk again, in this role.
    Disk(DiskUuid, NodeRole),
}

/// An invalid field.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidRequest {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("session.evidence is invalid")]
    Evidence(#[from] ParseEvidenceError),
    #[error("{what} is invalid")]
    UnknownPurpose {
        what: &'static str,
        #[source]
        source: UnknownPurpose,
    },
    #[error("session.purpose: {actual}, expected {expected}")]
    Purpose { actual: Purpose, expected: Purpose },
    #[error("{what}: {actual} bytes, expected 32")]
    Length { what: &'static str, actual: usize },
    #[error("role_grant: is_control_plane is not set, and only control planes need a grant")]
    NoRoleToGrant,
    #[error("disk_uuid is invalid")]
    Disk(#[from] ParseDiskUuidError),
    #[error("purpose: {0}: no keys are released for it")]
    NoKeysFor(Purpose),
}

/// The purpose of a session in which keys are released.
pub(crate) fn parse_purpose(message: kms::DrawNonceRequest) -> Result<Purpose, InvalidRequest> {
    let kms::DrawNonceRequest { purpose } = message;
    match purpose_in("purpose", &purpose)? {
        purpose @ (Purpose::Join | Purpose::Rejoin) => Ok(purpose),
        other => Err(InvalidRequest::NoKeysFor(other)),
    }
}

fn purpose_in(what: &'static str, text: &str) -> Result<Purpose, InvalidRequest> {
    let purpose = text.parse();
    purpose.map_err(|source| InvalidRequest::UnknownPurpose { what, source })
}

impl Wanted {
    /// The role that the node's disk has, or will have.
    pub(crate) const fn role(&self) -> NodeRole {
        match self {
            Self::Worker => NodeRole::Worker,
            Self::ControlPlane(_) => NodeRole::ControlPlane,
            Self::Disk(_, role) => *role,
        }
    }
}

impl Request {
    pub(crate) fn parse_admit(message: kms::AdmitNodeRequest) -> Result<Self, InvalidRequest> {
        let kms::AdmitNodeRequest {
            session,
            policy,
            is_control_plane,
            role_grant,
        } = message;
        let wanted = match (is_control_plane, role_grant.is_empty()) {
            (true, _) => Wanted::ControlPlane(role_grant),
            (false, true) => Wanted::Worker,
            (false, false) => return Err(InvalidRequest::NoRoleToGrant),
        };
        Self::new(session, policy, wanted)
    }

    pub(crate) fn parse_readmit(message: kms::ReadmitNodeRequest) -> Result<Self, InvalidRequest> {
        let kms::ReadmitNodeRequest {
            session,
            policy,
            disk_uuid,
            is_control_plane,
        } = message;
        let role = NodeRole::requested(is_control_plane);
        Self::new(session, policy, Wanted::Disk(disk_uuid.parse()?, role))
    }

    fn new(
        session: Option<kms::SessionEvidence>,
        policy: Option<kms::PresentedPolicy>,
        wanted: Wanted,
    ) -> Result<Self, InvalidRequest> {
        let purpose = match &wanted {
            Wanted::Worker | Wanted::ControlPlane(_) => Purpose::Join,
            Wanted::Disk(..) => Purpose::Rejoin,
        };
        let kms::PresentedPolicy {
            cluster_policy,
            measurement_salt,
        } = policy.ok_or(InvalidRequest::Missing("policy"))?;
        let (session, sealing_key) = parse_session(session.ok_or(InvalidRequest::Missing("session"))?, purpose)?;
        Ok(Self {
            session,
            sealing_key,
            policy: cluster_policy,
            measurement_salt: MeasurementSalt::new(array("policy.measurement_salt", &measurement_salt)?),
            wanted,
        })
    }
}

/// Nodes open sessions, so they are the clients.
fn parse_session(
    message: kms::SessionEvidence,
    expected: Purpose,
) -> Result<(SessionEvidence, SealingPublicKey), InvalidRequest> {
    let kms::SessionEvidence {
        evidence,
        purpose,
        exporter,
        node_leaf,
        service_leaf,
        nonce,
        sealing_key,
    } = message;
    let purpose = purpose_in("session.purpose", &purpose)?;
    if purpose != expected {
        return Err(InvalidRequest::Purpose {
            actual: purpose,
            expected,
        });
    }
    let sealing_key = SealingPublicKey::new(array("session.sealing_key", &sealing_key)?);
    let parts = SessionParts {
        direction: Direction::Client,
        exporter: array("session.exporter", &exporter)?,
        attester_leaf: Digest::new(array("session.node_leaf", &node_leaf)?),
        verifier_leaf: Digest::new(array("session.service_leaf", &service_leaf)?),
        nonce: Nonce::new(array("session.nonce", &nonce)?),
        purpose,
        sealing_key: Some(sealing_key),
    };
    let evidence = Evidence::parse(&evidence)?;
    Ok((SessionEvidence { parts, evidence }, sealing_key))
}

fn array(what: &'static str, bytes: &[u8]) -> Result<[u8; 32], InvalidRequest> {
    let wrong = |_| InvalidRequest::Length {
        what,
        actual: bytes.len(),
    };
    bytes.try_into().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use cluster_types::Variant;
    use error_report::Chain;

    use super::*;

    const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";

    fn session() -> kms::SessionEvidence {
        let evidence = Evidence {
            variant: Variant::ALL[0],
            body: vec![1],
        };
        kms::SessionEvidence {
            evidence: evidence.encode(),
            purpose: "join".into(),
            exporter: vec![1; 32],
            node_leaf: vec![2; 32],
            service_leaf: vec![3; 32],
            nonce: vec![4; 32],
            sealing_key: vec![5; 32],
        }
    }

    fn policy() -> kms::PresentedPolicy {
        kms::PresentedPolicy {
            cluster_policy: vec![6],
            measurement_salt: vec![7; 32],
        }
    }

    fn check(change: impl FnOnce(&mut kms::SessionEvidence)) -> Result<Request, InvalidRequest> {
        let mut session = session();
        change(&mut session);
        Request::parse_admit(kms::AdmitNodeRequest {
            session: Some(session),
            policy: Some(policy()),
            is_control_plane: false,
            role_grant: Vec::new(),
        })
    }

    fn check_rejoin(purpose: &str, disk: &str) -> Result<Request, InvalidRequest> {
        Request::parse_readmit(kms::ReadmitNodeRequest {
            session: Some(kms::SessionEvidence {
                purpose: purpose.into(),
                ..session()
            }),
            policy: Some(policy()),
            disk_uuid: disk.into(),
            is_control_plane: true,
        })
    }

    #[test]
    fn each_part_of_the_session_is_where_the_node_put_it() {
        let Request {
            session,
            sealing_key,
            policy,
            measurement_salt,
            wanted,
        } = check(|_| {}).unwrap();
        let expected = SessionParts {
            direction: Direction::Client,
            exporter: [1; 32],
            attester_leaf: Digest::new([2; 32]),
            verifier_leaf: Digest::new([3; 32]),
            nonce: Nonce::new([4; 32]),
            purpose: Purpose::Join,
            sealing_key: Some(SealingPublicKey::new([5; 32])),
        };
        assert_eq!(session.parts, expected);
        assert_eq!(sealing_key, SealingPublicKey::new([5; 32]));
        assert_eq!((policy, measurement_salt), (vec![6], MeasurementSalt::new([7; 32])));
        assert!(matches!(wanted, Wanted::Worker));
        let wanted = check_rejoin("rejoin", DISK).unwrap().wanted;
        assert!(matches!(wanted, Wanted::Disk(_, NodeRole::ControlPlane)));
    }

    #[test]
    fn bad_input_to_each_field_gives_one_error_that_names_it() {
        type Change = fn(&mut kms::SessionEvidence);
        let cases: [(Change, &str); 9] = [
            (
                |s| s.evidence = vec![0xff],
                "session.evidence is invalid: the evidence is malformed",
            ),
            (
                |s| s.purpose.clear(),
                "session.purpose is invalid: \"\" is not a purpose",
            ),
            (
                |s| s.purpose = "rejoin".into(),
                "session.purpose: rejoin, expected join",
            ),
            (|s| s.exporter.clear(), "session.exporter: 0 bytes, expected 32"),
            (|s| s.node_leaf.push(1), "session.node_leaf: 33 bytes, expected 32"),
            (|s| s.service_leaf.clear(), "session.service_leaf: 0 bytes, expected 32"),
            (|s| s.nonce.clear(), "session.nonce: 0 bytes, expected 32"),
            (|s| s.sealing_key.clear(), "session.sealing_key: 0 bytes, expected 32"),
            (|s| s.sealing_key.push(1), "session.sealing_key: 33 bytes, expected 32"),
        ];
        for (change, expected) in cases {
            let error = Chain(&check(change).unwrap_err()).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = check_rejoin("join", DISK).unwrap_err().to_string();
        assert_eq!(error, "session.purpose: join, expected rejoin");
        let error = check_rejoin("rejoin", &DISK.to_uppercase()).unwrap_err().to_string();
        assert_eq!(error, "disk_uuid is invalid");
    }

    #[test]
    fn what_is_missing_is_named() {
        let check = |session, policy| {
            let request = kms::AdmitNodeRequest {
                session,
                policy,
                is_control_plane: true,
                role_grant: Vec::new(),
            };
            Request::parse_admit(request).unwrap_err().to_string()
        };
        assert_eq!(check(None, Some(policy())), "session is missing");
        assert_eq!(check(Some(session()), None), "policy is missing");
        let short = kms::PresentedPolicy {
            measurement_salt: vec![7; 31],
            ..policy()
        };
        let error = check(Some(session()), Some(short));
        assert_eq!(error, "policy.measurement_salt: 31 bytes, expected 32");
    }

    #[test]
    fn a_worker_with_a_grant_is_a_mistake() {
        let request = kms::AdmitNodeRequest {
            session: Some(session()),
            policy: Some(policy()),
            is_control_plane: false,
            role_grant: vec![1],
        };
        assert!(matches!(
            Request::parse_admit(request),
            Err(InvalidRequest::NoRoleToGrant)
        ));
    }

    #[test]
    fn nonces_are_drawn_for_sessions_that_release_keys_alone() {
        let check = |purpose: &str| {
            parse_purpose(kms::DrawNonceRequest {
                purpose: purpose.into(),
            })
        };
        assert_eq!(check("join").unwrap(), Purpose::Join);
        assert_eq!(check("rejoin").unwrap(), Purpose::Rejoin);
        for other in ["init", "recover", "verify"] {
            assert!(matches!(check(other), Err(InvalidRequest::NoKeysFor(_))), "{other}");
        }
        let unknown = check("").unwrap_err();
        assert_eq!(unknown.to_string(), "purpose is invalid");
    }
}
