use std::fmt;

use digest::Digest;

/// One thing that authentic Evidence says, in the words of its technology (RFC 9334 section 4.2).
///
/// Names and values are for people to read. Of a claim, programs know only its comparison, of which the verdict is made;
/// everything else they decide on has a type in an [`AttestationResult`](crate::AttestationResult) that means the same for
/// every technology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What it is about, such as `PCR 4`.
    pub name: String,
    /// What was signed.
    pub actual: ClaimValue,
    /// How that compares with what is expected.
    pub comparison: Comparison,
}

/// What a claim says. Digests become text only when somebody reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimValue {
    /// A SHA-256 digest, such as a register.
    Digest(Digest),
    /// What is not a digest, in the words of its technology.
    Text(String),
}

/// How a claim compares with what is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Nothing is expected of it.
    NotCompared,
    /// It is as expected.
    AsExpected {
        /// What a difference would have meant.
        severity: Severity,
    },
    /// It differs, which is a finding.
    Differs {
        /// What was expected.
        expected: ClaimValue,
        /// What the difference means.
        severity: Severity,
    },
}

/// What a difference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The node is not what it should be.
    Contraindicates,
    /// It may differ between hosts.
    Warns,
}

/// A difference between the Evidence and what is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject} is {actual}, expected {expected}")]
pub struct Finding {
    /// Name of the claim.
    pub subject: String,
    /// What was signed.
    pub actual: ClaimValue,
    /// What was expected.
    pub expected: ClaimValue,
    /// What the difference means.
    pub severity: Severity,
}

impl Comparison {
    /// Equal values are as expected; all others differ.
    #[must_use]
    pub fn exact(actual: &ClaimValue, expected: ClaimValue, severity: Severity) -> Self {
        if *actual == expected {
            Self::AsExpected { severity }
        } else {
            Self::Differs { expected, severity }
        }
    }

    /// Whether a node on which this differs is not what it should be. Everything else says nothing about what the node is.
    pub(crate) fn is_required(&self) -> bool {
        match self {
            Self::NotCompared => false,
            Self::AsExpected { severity } | Self::Differs { severity, .. } => *severity == Severity::Contraindicates,
        }
    }
}

impl Claim {
    /// The finding, if the claim differs from what is expected.
    #[must_use]
    pub fn finding(&self) -> Option<Finding> {
        match &self.comparison {
            Comparison::NotCompared | Comparison::AsExpected { .. } => None,
            Comparison::Differs { expected, severity } => Some(Finding {
                subject: self.name.clone(),
                actual: self.actual.clone(),
                expected: expected.clone(),
                severity: *severity,
            }),
        }
    }
}

impl From<Digest> for ClaimValue {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl From<&str> for ClaimValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl fmt::Display for ClaimValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => digest.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}
