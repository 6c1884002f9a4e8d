use attestation::{MeasuredMembership, Membership};
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
    pub(crate) statements: Vec<String>,
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
    let Membership { cluster } = membership;
    format!("member of cluster {cluster}")
}

/// Statements are shown as the digest of all of them, in their order.
pub(crate) fn measured_membership(statements: &[String]) -> MeasuredMembership {
    MeasuredMembership::new("statements", shown(statements), shown(&[]), |membership| {
        shown(&[statement(membership)])
    })
}

fn shown(statements: &[String]) -> Digest {
    let json = serde_json::to_vec(statements).expect("a list of texts is JSON");
    Digest::of(&json)
}
