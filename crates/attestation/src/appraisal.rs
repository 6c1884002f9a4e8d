use cluster_types::Variant;

use crate::{AttestationResult, Evidence, ReportBinding, TrustBasis};

/// Appraises Evidence of one variant (RFC 9334 section 4.1). Pure: no I/O, no clock.
pub trait Verifier: Send + Sync {
    /// The one technology it appraises.
    fn variant(&self) -> Variant;

    /// What the technology is worth, whatever the Evidence says.
    fn trust(&self) -> TrustBasis;

    /// Checks that the Evidence is authentic and bound to `binding`, and compares it with what is expected.
    ///
    /// `endorsements` and `now` come from the caller. Endorsements that a technology needs and did not get are an error,
    /// never a check that is left out.
    ///
    /// # Errors
    /// When the Evidence is malformed, not signed as it must be, or bound to something else.
    fn appraise(
        &self,
        evidence: &Evidence,
        endorsements: &Endorsements,
        binding: &ReportBinding,
        now: UnixTime,
    ) -> Result<AttestationResult, AppraisalError>;
}

/// What a third party says about a device (RFC 9334 section 8.2), such as the certificate of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endorsements {
    /// The technology has no endorser.
    None,
}

/// Seconds since 1970. This crate has no clock: the caller that holds the session reads it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(u64);

impl UnixTime {
    /// That many seconds after the beginning of 1970.
    #[must_use]
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds)
    }

    /// Seconds since the beginning of 1970.
    #[must_use]
    pub const fn as_seconds(self) -> u64 {
        self.0
    }
}

/// Evidence that proves nothing: contraindicated without a closer look.
#[derive(Debug, thiserror::Error)]
pub enum AppraisalError {
    /// We have no verifier for it.
    #[error("the evidence is of variant {0}, which is not accepted here")]
    VariantNotAccepted(Variant),
    /// The technology's own checks failed.
    #[error("{variant} evidence is not authentic")]
    NotAuthentic {
        /// The variant that the Evidence claims to be of.
        variant: Variant,
        /// Which check failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a Relying Party accepts: at least one verifier, at most one for each variant. None of them has an endorser.
pub struct Verifiers(Vec<Box<dyn Verifier>>);

impl Verifiers {
    /// Accepts exactly this.
    #[must_use]
    pub fn one(verifier: impl Verifier + 'static) -> Self {
        Self(vec![Box::new(verifier)])
    }

    /// Accepts everything that the other set does too. For a variant in both, the other set's verifier counts.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0
            .retain(|old| !other.variants().any(|variant| variant == old.variant()));
        self.0.extend(other.0);
        self
    }

    /// The accepted variants.
    pub fn variants(&self) -> impl Iterator<Item = Variant> + '_ {
        self.0.iter().map(|verifier| verifier.variant())
    }

    /// The weakest trust basis among the accepted technologies.
    ///
    /// # Panics
    /// Never: there is at least one.
    #[must_use]
    pub fn trust(&self) -> TrustBasis {
        let trust = self.0.iter().map(|verifier| verifier.trust()).min();
        trust.expect("a set of verifiers is never empty")
    }

    /// Appraises with the verifier of the Evidence's variant.
    ///
    /// # Errors
    /// When there is none, or the Evidence is not authentic.
    pub fn appraise(
        &self,
        evidence: &Evidence,
        binding: &ReportBinding,
        now: UnixTime,
    ) -> Result<AttestationResult, AppraisalError> {
        let verifier = self
            .0
            .iter()
            .find(|verifier| verifier.variant() == evidence.variant)
            .ok_or(AppraisalError::VariantNotAccepted(evidence.variant))?;
        verifier.appraise(evidence, &Endorsements::None, binding, now)
    }
}

/// Accepts what one of these verifiers accepts, such as the old image and the new one while a cluster is updated. If none affirms, the
/// best result counts.
///
/// # Panics
/// When there is none, or they are of several variants.
#[must_use]
pub fn any_of(mut verifiers: Vec<Box<dyn Verifier>>) -> Box<dyn Verifier> {
    let first = verifiers.first().expect("at least one verifier").variant();
    assert!(verifiers.iter().all(|verifier| verifier.variant() == first));
    if verifiers.len() == 1 {
        return verifiers.remove(0);
    }
    Box::new(AnyOf(verifiers))
}

/// At least two verifiers of one variant.
struct AnyOf(Vec<Box<dyn Verifier>>);

impl Verifier for AnyOf {
    fn variant(&self) -> Variant {
        self.0[0].variant()
    }

    fn trust(&self) -> TrustBasis {
        let trust = self.0.iter().map(|verifier| verifier.trust()).min();
        trust.expect("there are verifiers")
    }

    fn appraise(
        &self,
        evidence: &Evidence,
        endorsements: &Endorsements,
        binding: &ReportBinding,
        now: UnixTime,
    ) -> Result<AttestationResult, AppraisalError> {
        let appraised = self
            .0
            .iter()
            .map(|verifier| verifier.appraise(evidence, endorsements, binding, now));
        // One image may require what the Evidence lacks, which is an error and says nothing about the others.
        let best = appraised.min_by_key(|appraised| match appraised {
            Ok(result) => (0, Some(result.outcome())),
            Err(_) => (1, None),
        });
        best.expect("there are verifiers")
    }
}

impl std::fmt::Debug for Verifiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.variants()).finish()
    }
}

impl<V: Verifier + ?Sized> Verifier for Box<V> {
    fn variant(&self) -> Variant {
        (**self).variant()
    }

    fn trust(&self) -> TrustBasis {
        (**self).trust()
    }

    fn appraise(
        &self,
        evidence: &Evidence,
        endorsements: &Endorsements,
        binding: &ReportBinding,
        now: UnixTime,
    ) -> Result<AttestationResult, AppraisalError> {
        (**self).appraise(evidence, endorsements, binding, now)
    }
}

#[cfg(test)]
mod tests {
    use cluster_types::OperatorPublicKey;
    use digest::Digest;

    use super::*;
    use crate::{
        AttestedIdentity, Claim, ClaimValue, Comparison, ExpectedMembership, ExpectedStatements, Measured,
        MeasuredStatements, Nonce, Outcome, Severity,
    };

    const OPERATOR: OperatorPublicKey = OperatorPublicKey::new([7; 32]);

    /// Finds this of everything, or that it is not authentic.
    struct Finds(Option<Outcome>);

    impl Verifier for Finds {
        fn variant(&self) -> Variant {
            Variant::ALL[0]
        }

        fn trust(&self) -> TrustBasis {
            TrustBasis::HostSoftware
        }

        fn appraise(
            &self,
            evidence: &Evidence,
            _: &Endorsements,
            _: &ReportBinding,
            _: UnixTime,
        ) -> Result<AttestationResult, AppraisalError> {
            let Some(outcome) = self.0 else {
                let (variant, source) = (evidence.variant, "a register is not quoted".into());
                return Err(AppraisalError::NotAuthentic { variant, source });
            };
            let claim = |expected: &str, severity| Claim {
                name: "image".to_owned(),
                actual: "one".into(),
                comparison: Comparison::exact(&"one".into(), ClaimValue::from(expected), severity),
            };
            let mut image = vec![claim("one", Severity::Contraindicates)];
            match outcome {
                Outcome::Affirming => {}
                Outcome::Warning => image.push(claim("other", Severity::Warns)),
                Outcome::Contraindicated => image.push(claim("other", Severity::Contraindicates)),
            }
            let new = Digest::new([0; 32]);
            let operator = |operator: &OperatorPublicKey| Digest::of(operator.as_bytes());
            Ok(AttestationResult::new(
                self.variant(),
                self.trust(),
                AttestedIdentity::new(new),
                &ExpectedStatements {
                    operator: OPERATOR,
                    membership: ExpectedMembership::New,
                },
                MeasuredStatements {
                    operator: Measured::new("operator", operator(&OPERATOR), new, operator),
                    membership: Measured::new("membership", new, new, |_| Digest::new([1; 32])),
                },
                image,
            ))
        }
    }

    fn any(found: &[Option<Outcome>]) -> Option<Outcome> {
        let verifiers = found.iter().map(|found| Box::new(Finds(*found)) as Box<dyn Verifier>);
        let (variant, body) = (Variant::ALL[0], Vec::new());
        let binding = ReportBinding::standalone(&Nonce::new([1; 32]));
        let now = UnixTime::from_seconds(0);
        let verifier = any_of(verifiers.collect());
        let appraised = verifier.appraise(&Evidence { variant, body }, &Endorsements::None, &binding, now);
        appraised.ok().map(|result| result.outcome())
    }

    #[test]
    fn of_several_images_the_best_result_counts() {
        use Outcome::{Affirming, Contraindicated, Warning};
        assert_eq!(any(&[Some(Contraindicated), Some(Affirming)]), Some(Affirming));
        assert_eq!(any(&[Some(Affirming), Some(Contraindicated)]), Some(Affirming));
        assert_eq!(any(&[Some(Contraindicated), Some(Warning)]), Some(Warning));
        assert_eq!(
            any(&[Some(Contraindicated), Some(Contraindicated)]),
            Some(Contraindicated)
        );
        // One image may have a register that the others do not quote.
        assert_eq!(any(&[None, Some(Affirming)]), Some(Affirming));
        assert_eq!(any(&[None, Some(Contraindicated)]), Some(Contraindicated));
        assert_eq!(any(&[None, None]), None);
        assert_eq!(any(&[Some(Warning)]), Some(Warning));
    }
}
