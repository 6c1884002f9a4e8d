use std::fmt;

use cluster_types::Variant;
use digest::Digest;

use crate::{Claim, ClaimValue, Comparison, ExpectedStatements, Finding, MeasuredStatements, Severity};

/// What an appraisal found (RFC 9334 section 8.4), in the three tiers of the EAT attestation result.
///
/// # Security
/// Its existence proves that the Evidence is authentic and bound to the verifier's binding. Whether the node may be
/// given anything is the [`Outcome`]; a key asks for an [`Affirmed`].
#[derive(Clone, Debug)]
pub struct AttestationResult {
    variant: Variant,
    trust: TrustBasis,
    identity: AttestedIdentity,
    statements: MeasuredStatements,
    claims: Vec<Claim>,
}

/// Identity of an attester that it cannot choose. It is the same after every boot of one machine and differs between
/// machines; what it is made of is the technology's to say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttestedIdentity(Digest);

impl AttestedIdentity {
    /// Made by a verifier from authenticated Evidence.
    #[must_use]
    pub const fn new(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest that tells this machine from others.
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

/// What stands behind the signature on the Evidence, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrustBasis {
    /// Software of the host: the host can forge everything. Only for trying things out.
    HostSoftware,
}

impl TrustBasis {
    /// Whether a verdict holds against whoever runs the host.
    #[must_use]
    pub const fn protects_from_host(self) -> bool {
        match self {
            Self::HostSoftware => false,
        }
    }
}

impl fmt::Display for TrustBasis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostSoftware => f.write_str("software of the host: no protection from the host"),
        }
    }
}

/// The verdict of an appraisal, in the order from good to bad. Keys are released only on [`Outcome::Affirming`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
#[error("attestation is {}: {}", result.outcome(), findings(result))]
pub struct NotAffirmed {
    /// What the appraisal found.
    pub result: Box<AttestationResult>,
}

impl NotAffirmed {
    /// Warning or contraindicated.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.result.outcome()
    }
}

/// An [`AttestationResult`] whose verdict is affirming. Only [`AttestationResult::into_affirmed`] makes one.
#[derive(Clone, Debug)]
pub struct Affirmed(AttestationResult);

impl AttestationResult {
    /// Made by a verifier from authenticated Evidence. `image` is what the machine says about what it booted, each compared
    /// with the reference values.
    ///
    /// The statements are compared here, so that no technology can forget to. An image is
    /// contraindicated if no claim of it is required, because such an appraisal would accept every image. A claim that only
    /// warns, such as the name of a host, says nothing about the image, even if it is as expected.
    #[must_use]
    pub fn new(
        variant: Variant,
        trust: TrustBasis,
        identity: AttestedIdentity,
        expected: &ExpectedStatements,
        statements: MeasuredStatements,
        image: Vec<Claim>,
    ) -> Self {
        let is_appraised = image.iter().any(|claim| claim.comparison.is_required());
        let mut claims = image;
        if !is_appraised {
            claims.push(nothing_required());
        }
        claims.extend(statements.claims(expected));
        Self {
            variant,
            trust,
            identity,
            statements,
            claims,
        }
    }

    /// The variant whose Verifier appraised the Evidence.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The trust basis of the technology that made the Evidence.
    #[must_use]
    pub fn trust(&self) -> TrustBasis {
        self.trust
    }

    /// The machine that made the Evidence, as its Verifier names it.
    #[must_use]
    pub fn identity(&self) -> AttestedIdentity {
        self.identity
    }

    /// What it has said about itself by measuring it.
    #[must_use]
    pub fn statements(&self) -> &MeasuredStatements {
        &self.statements
    }

    /// Everything it says, each compared with what is expected: its image, then its statements.
    #[must_use]
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// Everything that differs from what is expected.
    pub fn findings(&self) -> impl Iterator<Item = Finding> + '_ {
        self.claims.iter().filter_map(Claim::finding)
    }

    /// The verdict: the worst of all findings.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let verdict = |finding: Finding| match finding.severity {
            Severity::Warns => Outcome::Warning,
            Severity::Contraindicates => Outcome::Contraindicated,
        };
        self.findings().map(verdict).max().unwrap_or(Outcome::Affirming)
    }

    /// The proof that the verdict is affirming.
    ///
    /// # Errors
    /// When it is not.
    pub fn into_affirmed(self) -> Result<Affirmed, NotAffirmed> {
        match self.outcome() {
            Outcome::Affirming => Ok(Affirmed(self)),
            Outcome::Warning | Outcome::Contraindicated => Err(NotAffirmed { result: Box::new(self) }),
        }
    }
}

impl Affirmed {
    /// The machine that made the Evidence, as its Verifier names it.
    #[must_use]
    pub fn identity(&self) -> AttestedIdentity {
        self.0.identity()
    }

    /// The whole result.
    #[must_use]
    pub fn result(&self) -> &AttestationResult {
        &self.0
    }
}

fn nothing_required() -> Claim {
    Claim {
        name: "image".to_owned(),
        actual: ClaimValue::from("compared with no required value"),
        comparison: Comparison::Differs {
            expected: ClaimValue::from("at least one"),
            severity: Severity::Contraindicates,
        },
    }
}

fn findings(result: &AttestationResult) -> String {
    let findings: Vec<_> = result.findings().map(|finding| finding.to_string()).collect();
    findings.join("; ")
}

#[cfg(test)]
mod tests {
    use cluster_types::{ClusterId, NodeRole, OperatorPublicKey};

    use super::*;
    use crate::{ExpectedMembership, Measured, Membership};

    const OPERATOR: OperatorPublicKey = OperatorPublicKey::new([2; 32]);

    /// A new machine of our operator that says this about its image.
    fn result(membership: ExpectedMembership, image: Vec<Claim>) -> AttestationResult {
        of_operator(OPERATOR, membership, image)
    }

    fn of_operator(obeyed: OperatorPublicKey, membership: ExpectedMembership, image: Vec<Claim>) -> AttestationResult {
        let zero = Digest::new([0; 32]);
        let shown = |operator: &OperatorPublicKey| Digest::new(*operator.as_bytes());
        AttestationResult::new(
            Variant::ALL[0],
            TrustBasis::HostSoftware,
            AttestedIdentity::new(zero),
            &ExpectedStatements {
                operator: OPERATOR,
                membership,
            },
            MeasuredStatements {
                operator: Measured::new("operator", shown(&obeyed), zero, shown),
                membership: Measured::new("register", zero, zero, |_| Digest::new([1; 32])),
            },
            image,
        )
    }

    fn check(image: Vec<Claim>) -> Outcome {
        let result = result(ExpectedMembership::New, image);
        let outcome = result.outcome();
        assert_eq!(result.into_affirmed().is_ok(), outcome == Outcome::Affirming);
        outcome
    }

    fn refusal(expected: ExpectedMembership, image: Vec<Claim>) -> String {
        result(expected, image).into_affirmed().unwrap_err().to_string()
    }

    fn claim(comparison: Comparison) -> Claim {
        Claim {
            name: "image".to_owned(),
            actual: "one".into(),
            comparison,
        }
    }

    fn equals(severity: Severity) -> Claim {
        claim(Comparison::exact(&"one".into(), ClaimValue::from("one"), severity))
    }

    fn differs(severity: Severity) -> Claim {
        claim(Comparison::exact(&"one".into(), ClaimValue::from("other"), severity))
    }

    #[test]
    fn the_worst_finding_decides() {
        let good = || {
            vec![
                claim(Comparison::NotCompared),
                equals(Severity::Warns),
                equals(Severity::Contraindicates),
            ]
        };
        let with = |more: &[Severity]| good().into_iter().chain(more.iter().copied().map(differs)).collect();
        assert_eq!(check(good()), Outcome::Affirming);
        assert_eq!(check(with(&[Severity::Warns])), Outcome::Warning);
        for severities in [
            &[Severity::Contraindicates][..],
            &[Severity::Warns, Severity::Contraindicates],
            &[Severity::Contraindicates, Severity::Warns],
        ] {
            assert_eq!(check(with(severities)), Outcome::Contraindicated);
        }
    }

    #[test]
    fn the_membership_decides_whatever_the_image_says() {
        let good = || vec![equals(Severity::Contraindicates)];
        assert_eq!(
            refusal(ExpectedMembership::Any, good()),
            format!(
                "attestation is contraindicated: register is {}, expected the id of a cluster and a role, measured",
                "00".repeat(32)
            )
        );
        let member = ExpectedMembership::Of(Membership::new(ClusterId::new([1; 32]), NodeRole::Worker));
        assert_eq!(
            refusal(member, good()),
            format!(
                "attestation is contraindicated: register is {}, expected {}",
                "00".repeat(32),
                "01".repeat(32)
            )
        );
    }

    #[test]
    fn another_operators_node_is_contraindicated_whatever_else_it_says() {
        let good = || vec![equals(Severity::Contraindicates)];
        for other in [[3; 32], [0; 32]] {
            let result = of_operator(OperatorPublicKey::new(other), ExpectedMembership::New, good());
            assert_eq!(
                result.into_affirmed().unwrap_err().to_string(),
                format!(
                    "attestation is contraindicated: operator is {}, expected {}",
                    hex::encode(other),
                    "02".repeat(32)
                )
            );
        }
    }

    #[test]
    fn an_image_of_which_nothing_is_required_is_contraindicated() {
        let nothing = "image is compared with no required value, expected at least one";
        for image in [
            vec![],
            vec![claim(Comparison::NotCompared)],
            vec![equals(Severity::Warns)],
            vec![
                claim(Comparison::NotCompared),
                equals(Severity::Warns),
                equals(Severity::Warns),
            ],
        ] {
            assert_eq!(
                refusal(ExpectedMembership::New, image),
                format!("attestation is contraindicated: {nothing}")
            );
        }
        assert_eq!(
            refusal(ExpectedMembership::New, vec![differs(Severity::Warns)]),
            format!("attestation is contraindicated: image is one, expected other; {nothing}")
        );
    }

    #[test]
    fn one_required_value_is_enough_to_appraise_an_image() {
        assert_eq!(check(vec![equals(Severity::Contraindicates)]), Outcome::Affirming);
    }

    #[test]
    fn a_finding_has_both_sides() {
        let finding = differs(Severity::Warns).finding().unwrap().to_string();
        assert_eq!(finding, "image is one, expected other");
    }
}
