//! Quotes of a real TPM 2.0 implementation, swtpm.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::collections::BTreeMap;

use attestation::{
    AppraisalError, AttestationResult, Attester, BindingParts, Endorsements, Evidence, Expectations,
    ExpectedMembership, ExpectedStatements, MeasuringAttester, Membership, Nonce, Outcome, ReportBinding, TrustBasis,
    UnixTime, Verifier,
};
use attestation_tpm::{PcrPolicy, SocketTransport, Tpm, TpmAttester, TpmVerifier};
use cluster_types::{ClusterId, NodeRole, OperatorPublicKey, Variant};
use measurements::{PcrIndex, PcrReferences, PcrValue, ReferenceValues};
use test_tpm::SoftwareTpm;

const KERNEL: PcrIndex = PcrIndex::new(11);
const OPERATOR: OperatorPublicKey = OperatorPublicKey::new([2; 32]);

fn attester(tpm: &SoftwareTpm) -> TpmAttester {
    let transport = SocketTransport::connect(&tpm.socket()).unwrap();
    TpmAttester::new(Variant::QemuVtpm, Tpm::new(transport)).unwrap()
}

fn image() -> ReferenceValues {
    let mut registers = BTreeMap::from(PcrIndex::IMAGE.map(|index| (index, PcrValue::ZERO)));
    registers.insert(KERNEL, PcrValue::ZERO.event(&[11; 32]));
    ReferenceValues::new(Variant::QemuVtpm, "image", &PcrReferences::new(registers))
}

fn appraise(
    expectations: &Expectations,
    evidence: &Evidence,
    binding: &ReportBinding,
) -> Result<AttestationResult, AppraisalError> {
    let policy = PcrPolicy::new(expectations).unwrap();
    let verifier = TpmVerifier::new(Variant::QemuVtpm, TrustBasis::HostSoftware, policy);
    verifier.appraise(evidence, &Endorsements::None, binding, UnixTime::from_seconds(0))
}

fn check(node: &TpmAttester, image: ReferenceValues, membership: ExpectedMembership) -> AttestationResult {
    let parts = parts();
    let evidence = node.attest(&parts).unwrap();
    let statements = ExpectedStatements {
        operator: OPERATOR,
        membership,
    };
    appraise(&Expectations { image, statements }, &evidence, &parts.binding()).unwrap()
}

fn parts() -> BindingParts {
    BindingParts::Nonce(Nonce::generate())
}

fn boot(attester: &TpmAttester) {
    attester
        .with_tpm(|tpm| tpm.extend_with_event(KERNEL, &[11; 32]))
        .unwrap();
    attester.measure_operator(&OPERATOR).unwrap();
}

#[test]
fn a_node_is_new_until_it_measures_its_cluster_and_its_role() {
    use ExpectedMembership::{Any, New, Of};
    let tpm = SoftwareTpm::start().unwrap();
    let node = attester(&tpm);
    boot(&node);
    let member = |id| Membership::new(ClusterId::new([id; 32]), NodeRole::Worker);
    let control_plane = Membership::new(ClusterId::new([42; 32]), NodeRole::ControlPlane);
    let outcome = |membership| check(&node, image(), membership).outcome();

    assert!(node.membership().unwrap().is_new());
    assert_eq!(outcome(New), Outcome::Affirming);
    assert_eq!(outcome(Of(member(42))), Outcome::Contraindicated);
    assert_eq!(outcome(Any), Outcome::Contraindicated);

    node.measure_membership(&member(42)).unwrap();
    assert!(node.membership().unwrap().is(&member(42)));
    assert_eq!(outcome(New), Outcome::Contraindicated);
    assert_eq!(outcome(Of(member(42))), Outcome::Affirming);
    assert_eq!(outcome(Any), Outcome::Affirming);
    assert_eq!(outcome(Of(member(43))), Outcome::Contraindicated);
    assert_eq!(outcome(Of(control_plane)), Outcome::Contraindicated);
}

#[test]
fn another_kernel_is_contraindicated() {
    let tpm = SoftwareTpm::start().unwrap();
    let node = attester(&tpm);
    node.measure_operator(&OPERATOR).unwrap();
    let result = check(&node, image(), ExpectedMembership::New);
    assert_eq!(result.outcome(), Outcome::Contraindicated);
    let findings: Vec<_> = result.findings().map(|finding| finding.subject).collect();
    assert_eq!(findings, ["PCR 11"]);
}

#[test]
fn a_node_expects_its_own_image_and_no_other() {
    let own = SoftwareTpm::start().unwrap();
    let own_image = attester(&own).own_image().unwrap();
    for register in [4, 9, 11, 12, 13] {
        let tpm = SoftwareTpm::start().unwrap();
        let node = attester(&tpm);
        node.measure_operator(&OPERATOR).unwrap();
        let before = check(&node, own_image.clone(), ExpectedMembership::New);
        assert_eq!(before.outcome(), Outcome::Affirming);
        node.with_tpm(|tpm| tpm.extend_with_event(PcrIndex::new(register), &[1; 32]))
            .unwrap();
        let after = check(&node, own_image.clone(), ExpectedMembership::New);
        assert_eq!(after.outcome(), Outcome::Contraindicated);
    }
}

#[test]
fn evidence_does_not_serve_twice() {
    let tpm = SoftwareTpm::start().unwrap();
    let node = attester(&tpm);
    let evidence = node.attest(&parts()).unwrap();
    let expectations = Expectations {
        image: image(),
        statements: ExpectedStatements {
            operator: OPERATOR,
            membership: ExpectedMembership::New,
        },
    };
    assert!(appraise(&expectations, &evidence, &parts().binding()).is_err());
}

#[test]
fn identity_stays_with_one_machine_and_differs_between_two() {
    let (one, other) = (SoftwareTpm::start().unwrap(), SoftwareTpm::start().unwrap());
    let identity = attester(&one).identity();
    assert_eq!(attester(&one).identity(), identity);
    assert_ne!(attester(&other).identity(), identity);
}
