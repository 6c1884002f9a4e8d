use attestation::{
    AppraisalError, AttestationResult, AttestedIdentity, Claim, ClaimValue, Comparison, Endorsements, Evidence,
    Expectations, ExpectedStatements, ReportBinding, Severity, TrustBasis, UnixTime, Verifier,
};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use cluster_types::Variant;
use digest::Digest;
use document::DocumentError;
use serde::{Deserialize, Serialize};

use crate::report::{Report, SignedReport, measured};
use crate::variant::VARIANT;

/// The end of 2099, by which no test runs.
const NOT_AFTER: u64 = 4_102_444_799;

/// The reference values of this variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KeyReferences {
    /// The image that must have booted.
    pub image: Digest,
    /// The host on which it should run.
    pub host: String,
    /// When the values end, in seconds since 1970.
    pub not_after: u64,
}

/// Appraises reports of key files.
pub struct KeyVerifier {
    references: KeyReferences,
    statements: ExpectedStatements,
}

/// Which check the Evidence failed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAuthentic {
    /// The body or the report cannot be read.
    #[error("the evidence is malformed")]
    Malformed,
    /// The signature does not verify.
    #[error("the report is not signed by its key")]
    Signature,
    /// The report was made for another session, nonce or purpose.
    #[error("the report is bound to {actual}, expected {expected}")]
    Binding {
        /// In the report.
        actual: String,
        /// Of this session.
        expected: String,
    },
    /// What the report would be compared with holds no longer.
    #[error("the reference values ended at {not_after}, it is {now}")]
    Ended {
        /// Of the reference values.
        not_after: u64,
        /// The caller's time.
        now: u64,
    },
}

impl KeyReferences {
    /// Values that do not end while tests run.
    #[must_use]
    pub fn new(image: Digest, host: &str) -> Self {
        Self {
            image,
            host: host.to_owned(),
            not_after: NOT_AFTER,
        }
    }
}

impl KeyVerifier {
    /// Appraises by these expectations.
    ///
    /// # Errors
    /// When the reference values are not those of this variant.
    pub fn new(expectations: &Expectations) -> Result<Self, DocumentError> {
        Ok(Self {
            references: expectations.image.values()?,
            statements: expectations.statements,
        })
    }

    /// 1. The reference values hold.
    /// 2. The body is a report and the key signed it.
    /// 3. The report is bound to this session.
    fn check(&self, body: &[u8], binding: &ReportBinding, now: UnixTime) -> Result<AttestationResult, NotAuthentic> {
        check_time(self.references.not_after, now)?;
        let (key, report) = verify_signature(body)?;
        check_binding(&report, binding)?;
        Ok(AttestationResult::new(
            VARIANT,
            TrustBasis::HostSoftware,
            AttestedIdentity::new(Digest::of(&key)),
            &self.statements,
            measured(&report.statements),
            self.image_claims(report),
        ))
    }

    fn image_claims(&self, report: Report) -> Vec<Claim> {
        let KeyReferences { image, host, .. } = &self.references;
        let exact = |name: &str, actual: ClaimValue, expected: ClaimValue, severity| Claim {
            name: name.to_owned(),
            comparison: Comparison::exact(&actual, expected, severity),
            actual,
        };
        vec![
            exact("image", report.image.into(), (*image).into(), Severity::Contraindicates),
            exact("host", ClaimValue::Text(report.host), (&**host).into(), Severity::Warns),
        ]
    }
}

impl Verifier for KeyVerifier {
    fn variant(&self) -> Variant {
        VARIANT
    }

    fn trust(&self) -> TrustBasis {
        TrustBasis::HostSoftware
    }

    fn appraise(
        &self,
        evidence: &Evidence,
        _endorsements: &Endorsements,
        binding: &ReportBinding,
        now: UnixTime,
    ) -> Result<AttestationResult, AppraisalError> {
        if evidence.variant != VARIANT {
            return Err(AppraisalError::VariantNotAccepted(evidence.variant));
        }
        let result = self.check(&evidence.body, binding, now);
        result.map_err(|error| AppraisalError::NotAuthentic {
            variant: VARIANT,
            source: error.into(),
        })
    }
}

fn check_time(not_after: u64, now: UnixTime) -> Result<(), NotAuthentic> {
    let now = now.as_seconds();
    if now <= not_after {
        Ok(())
    } else {
        Err(NotAuthentic::Ended { not_after, now })
    }
}

fn verify_signature(body: &[u8]) -> Result<(Vec<u8>, Report), NotAuthentic> {
    let signed: SignedReport = serde_json::from_slice(body).map_err(|_| NotAuthentic::Malformed)?;
    UnparsedPublicKey::new(&ED25519, &signed.key)
        .verify(&signed.report, &signed.signature)
        .map_err(|_| NotAuthentic::Signature)?;
    let report = serde_json::from_slice(&signed.report).map_err(|_| NotAuthentic::Malformed)?;
    Ok((signed.key, report))
}

fn check_binding(report: &Report, binding: &ReportBinding) -> Result<(), NotAuthentic> {
    let expected = hex::encode(binding.as_bytes());
    if report.binding == expected {
        Ok(())
    } else {
        let actual = report.binding.clone();
        Err(NotAuthentic::Binding { actual, expected })
    }
}

#[cfg(test)]
mod tests {
    use attestation::{Attester, BindingParts, ExpectedMembership, MeasuringAttester, Membership, Nonce, Outcome};
    use cluster_types::{ClusterId, NodeRole, OperatorPublicKey};
    use measurements::ReferenceValues;

    use super::*;
    use crate::{KeyAttester, KeyFile};

    const IMAGE: Digest = Digest::new([1; 32]);
    const OPERATOR: OperatorPublicKey = OperatorPublicKey::new([2; 32]);
    const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);

    struct Fixture {
        attester: KeyAttester,
        file: KeyFile,
        _folder: tempfile::TempDir,
    }

    fn machine() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let file = KeyFile::create(&folder.path().join("key"), IMAGE, "here").unwrap();
        let attester = KeyAttester::new(file.clone()).unwrap();
        attester.measure_operator(&OPERATOR).unwrap();
        Fixture {
            attester,
            file,
            _folder: folder,
        }
    }

    const PARTS: BindingParts = BindingParts::Nonce(Nonce::new([7; 32]));

    fn binding() -> ReportBinding {
        PARTS.binding()
    }

    fn verifier(membership: ExpectedMembership) -> KeyVerifier {
        let image = ReferenceValues::new(VARIANT, "image", &KeyReferences::new(IMAGE, "here"));
        let statements = ExpectedStatements {
            operator: OPERATOR,
            membership,
        };
        KeyVerifier::new(&Expectations { image, statements }).unwrap()
    }

    fn outcome(machine: &Fixture, membership: ExpectedMembership) -> Outcome {
        let evidence = machine.attester.attest(&PARTS).unwrap();
        let result = verifier(membership).check(&evidence.body, &binding(), NOW);
        result.unwrap().outcome()
    }

    /// Lets the test change a good body before it is appraised.
    fn check(change: impl FnOnce(&mut SignedReport)) -> NotAuthentic {
        let body = machine().attester.attest(&PARTS).unwrap().body;
        let mut signed = serde_json::from_slice(&body).unwrap();
        change(&mut signed);
        let body = serde_json::to_vec(&signed).unwrap();
        let result = verifier(ExpectedMembership::New).check(&body, &binding(), NOW);
        result.unwrap_err()
    }

    #[test]
    fn a_machine_is_new_until_it_says_what_it_is_part_of() {
        use ExpectedMembership::{Any, New, Of};
        let machine = machine();
        let member = |id| Membership::new(ClusterId::new([id; 32]), NodeRole::Worker);
        assert_eq!(outcome(&machine, New), Outcome::Affirming);
        assert_eq!(outcome(&machine, Any), Outcome::Contraindicated);
        machine.attester.measure_membership(&member(1)).unwrap();
        assert_eq!(outcome(&machine, Of(member(1))), Outcome::Affirming);
        let other_role = Membership::new(ClusterId::new([1; 32]), NodeRole::ControlPlane);
        assert_eq!(outcome(&machine, Of(other_role)), Outcome::Contraindicated);
        assert_eq!(outcome(&machine, Any), Outcome::Affirming);
        assert_eq!(outcome(&machine, New), Outcome::Contraindicated);
        machine.attester.measure_membership(&member(2)).unwrap();
        assert_eq!(outcome(&machine, Of(member(1))), Outcome::Contraindicated);
        assert_eq!(outcome(&machine, Of(member(2))), Outcome::Contraindicated);
    }

    #[test]
    fn a_machine_obeys_one_operator() {
        let machine = machine();
        machine
            .attester
            .measure_operator(&OperatorPublicKey::new([3; 32]))
            .unwrap();
        assert_eq!(outcome(&machine, ExpectedMembership::New), Outcome::Contraindicated);
    }

    #[test]
    fn another_image_is_contraindicated_and_another_host_a_warning() {
        let machine = machine();
        machine.file.set_host("there").unwrap();
        assert_eq!(outcome(&machine, ExpectedMembership::New), Outcome::Warning);
        machine.file.set_image(Digest::new([2; 32])).unwrap();
        assert_eq!(outcome(&machine, ExpectedMembership::New), Outcome::Contraindicated);
    }

    #[test]
    fn rejects_what_its_key_did_not_sign() {
        assert_eq!(
            check(|signed| *signed.report.last_mut().unwrap() ^= 1),
            NotAuthentic::Signature
        );
        assert_eq!(check(|signed| signed.key = vec![1; 32]), NotAuthentic::Signature);
    }

    #[test]
    fn rejects_a_report_for_another_binding() {
        let evidence = machine().attester.attest(&PARTS).unwrap();
        let other = ReportBinding::standalone(&Nonce::new([8; 32]));
        let result = verifier(ExpectedMembership::New).check(&evidence.body, &other, NOW);
        assert!(matches!(result, Err(NotAuthentic::Binding { .. })));
    }

    #[test]
    fn rejects_everything_when_the_reference_values_have_ended() {
        let evidence = machine().attester.attest(&PARTS).unwrap();
        let appraise = |now| {
            let verifier = verifier(ExpectedMembership::New);
            verifier.check(&evidence.body, &binding(), UnixTime::from_seconds(now))
        };
        assert!(appraise(NOT_AFTER).is_ok());
        assert!(matches!(appraise(NOT_AFTER + 1), Err(NotAuthentic::Ended { .. })));
    }

    #[test]
    fn rejects_a_body_that_is_not_a_report() {
        let result = verifier(ExpectedMembership::New).check(b"{}", &binding(), NOW);
        assert!(matches!(result, Err(NotAuthentic::Malformed)));
    }
}
