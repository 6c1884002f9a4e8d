use attestation::{Measured, MeasuredStatements, Membership, ShownStatements};
use cluster_types::OperatorPublicKey;
use digest::Digest;
use serde::{Deserialize, Serialize};

/// What is signed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    /// Hex of the whole binding.
    pub(crate) binding: String,
    pub(crate) image: Digest,
    pub(crate) host: String,
    pub(crate) statements: Statements,
}

/// What the machine has said about itself, in this order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Statements {
    pub(crate) operators: Vec<String>,
    pub(crate) memberships: Vec<String>,
}

/// The body of an Evidence.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignedReport {
    /// Ed25519 (RFC 8032).
    #[serde(with = "hex::serde")]
    pub(crate) key: Vec<u8>,
    /// JSON of a [`Report`], as it was signed.
    #[serde(with = "hex::serde")]
    pub(crate) report: Vec<u8>,
    #[serde(with = "hex::serde")]
    pub(crate) signature: Vec<u8>,
}

/// What a machine says when it becomes a member.
pub(crate) fn statement(membership: &Membership) -> String {
    let Membership { cluster, role } = membership;
    format!("{role} of cluster {cluster}")
}

/// What a machine says about whom it obeys.
pub(crate) fn statement_of_operator(operator: &OperatorPublicKey) -> String {
    format!("obeys {operator}")
}

/// Statements are shown as the digest of all of them, in their order.
pub(crate) fn measured(statements: &Statements) -> MeasuredStatements {
    let Statements { operators, memberships } = statements;
    measured_if_shown(&ShownStatements {
        operator: shown(operators),
        membership: shown(memberships),
    })
}

pub(crate) fn measured_if_shown(digests: &ShownStatements) -> MeasuredStatements {
    let ShownStatements { operator, membership } = *digests;
    MeasuredStatements {
        operator: Measured::new("operators", operator, shown(&[]), |operator| {
            shown(&[statement_of_operator(operator)])
        }),
        membership: Measured::new("memberships", membership, shown(&[]), |membership| {
            shown(&[statement(membership)])
        }),
    }
}

fn shown(statements: &[String]) -> Digest {
    let json = serde_json::to_vec(statements).expect("a list of texts is JSON");
    Digest::of(&json)
}
