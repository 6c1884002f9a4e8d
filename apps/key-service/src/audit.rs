//! What is recorded of each release.

use jiff::Timestamp;
use serde::Serialize;

/// One decision about a node whose Evidence was affirmed. It never holds a key.
#[derive(Debug, Serialize)]
pub(crate) struct Record {
    /// When it was made. The host sets the clock, so this is only a hint.
    pub(crate) time: Timestamp,
    /// What the node's session is for.
    pub(crate) purpose: &'static str,
    /// The attested identity of the node.
    pub(crate) machine: String,
    /// The serial of the policy by which its Evidence was affirmed.
    pub(crate) policy_serial: u64,
    /// The ids of the keys that the node gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) keys: Vec<String>,
    pub(crate) decision: Decision,
    /// Why the node gets nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Decision {
    Granted,
    Denied,
}
