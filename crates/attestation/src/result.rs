use std::fmt;

use cluster_types::Variant;
use digest::Digest;
use measurements::{PcrIndex, PcrValue, PcrValues};

/// What an appraisal found (RFC 9334 section 8.4), in the three tiers of the EAT attestation result.
///
/// # Security
/// Its existence proves that the Evidence is authentic and bound to the verifier's binding. Whether the node may be
/// given anything is the [`Outcome`]; a key asks for an [`Affirmed`].
#[derive(Clone, Debug)]
pub struct AttestationResult {
    /// The technology.
    pub variant: Variant,
    /// What the technology itself is worth.
    pub trust: TrustBasis,
    /// Who attested.
    pub identity: AttestedIdentity,
    /// The measured registers, as signed.
    pub pcrs: PcrValues,
    /// Everything that differs from the ReferenceValues.
    pub findings: Vec<Finding>,
}

/// Identity of an attester that it cannot choose: for TPM variants the name of its attestation key, a primary key that
/// a TPM derives from its seed, so that it is the same after every boot of one machine and differs between machines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttestedIdentity(Digest);

impl AttestedIdentity {
    /// Made by a verifier from authenticated Evidence.
    #[must_use]
    pub const fn new(digest: Digest) -> Self {
        Self(digest)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Display for AttestedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for AttestedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttestedIdentity({})", self.0)
    }
}

/// What stands behind the signature on the Evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustBasis {
    /// A TPM in the host's software: the host can forge everything. Only for trying things out.
    HostSoftware,
}

impl fmt::Display for TrustBasis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostSoftware => f.write_str("software TPM of the host: no protection from the host"),
        }
    }
}

/// One difference between the Evidence and the ReferenceValues.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A register holds another value.
    #[error("PCR {index} is {actual}, expected {expected}")]
    Pcr {
        /// Which register.
        index: PcrIndex,
        /// What was signed.
        actual: PcrValue,
        /// What the reference values say.
        expected: PcrValue,
        /// Whether this contraindicates the node or only warns.
        required: bool,
    },
    /// The node should be part of a cluster, but PCR 15 is zero.
    #[error("PCR 15 is zero: the node is not part of a cluster")]
    NotAMember,
}

impl Finding {
    fn is_required(&self) -> bool {
        match self {
            Self::Pcr { required, .. } => *required,
            Self::NotAMember => true,
        }
    }
}

/// The verdict of an appraisal. Keys are released only on [`Outcome::Affirming`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as expected.
    Affirming,
    /// Something differs that may differ between hosts.
    Warning,
    /// The node is not what it should be.
    Contraindicated,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Affirming => "affirming",
            Self::Warning => "warning",
            Self::Contraindicated => "contraindicated",
        })
    }
}

/// The Evidence is authentic, but the verdict releases nothing.
#[derive(Debug, thiserror::Error)]
#[error("attestation is {outcome}: {}", join(findings))]
pub struct NotAffirmed {
    /// Warning or contraindicated.
    pub outcome: Outcome,
    /// Why.
    pub findings: Vec<Finding>,
}

/// An [`AttestationResult`] whose verdict is affirming. Only [`AttestationResult::into_affirmed`] makes one.
#[derive(Clone, Debug)]
pub struct Affirmed(AttestationResult);

impl AttestationResult {
    /// The verdict: the worst of all findings.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.findings.is_empty() {
            Outcome::Affirming
        } else if self.findings.iter().any(Finding::is_required) {
            Outcome::Contraindicated
        } else {
            Outcome::Warning
        }
    }

    /// The proof that the verdict is affirming.
    ///
    /// # Errors
    /// When it is not.
    pub fn into_affirmed(self) -> Result<Affirmed, NotAffirmed> {
        match self.outcome() {
            Outcome::Affirming => Ok(Affirmed(self)),
            outcome => Err(NotAffirmed {
                outcome,
                findings: self.findings,
            }),
        }
    }
}

impl Affirmed {
    /// Who attested.
    #[must_use]
    pub fn identity(&self) -> AttestedIdentity {
        self.0.identity
    }

    /// The whole result.
    #[must_use]
    pub fn result(&self) -> &AttestationResult {
        &self.0
    }
}

fn join(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(findings: Vec<Finding>) -> Outcome {
        let result = AttestationResult {
            variant: Variant::QemuVtpm,
            trust: TrustBasis::HostSoftware,
            identity: AttestedIdentity::new(Digest::new([0; 32])),
            pcrs: PcrValues::new(),
            findings,
        };
        let outcome = result.outcome();
        assert_eq!(result.into_affirmed().is_ok(), outcome == Outcome::Affirming);
        outcome
    }

    fn differs(required: bool) -> Finding {
        Finding::Pcr {
            index: PcrIndex::new(4),
            actual: PcrValue::ZERO,
            expected: PcrValue::new([1; 32]),
            required,
        }
    }

    #[test]
    fn the_worst_finding_decides() {
        assert_eq!(check(vec![]), Outcome::Affirming);
        assert_eq!(check(vec![differs(false)]), Outcome::Warning);
        assert_eq!(check(vec![differs(false), differs(true)]), Outcome::Contraindicated);
        assert_eq!(check(vec![Finding::NotAMember]), Outcome::Contraindicated);
    }
}
