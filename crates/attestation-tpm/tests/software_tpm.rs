//! Quotes of a real TPM 2.0 implementation, swtpm.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::collections::BTreeMap;

use attestation::{Attester, Finding, Nonce, Outcome, ReportBinding, TrustBasis, Verifier};
use attestation_tpm::{Membership, PcrPolicy, SocketTransport, Tpm, TpmAttester, TpmVerifier};
use cluster_types::{ClusterId, Variant};
use measurements::{PcrIndex, PcrValue, ReferenceValues};
use test_tpm::SoftwareTpm;

const KERNEL: PcrIndex = PcrIndex::new(11);

fn attester(tpm: &SoftwareTpm) -> TpmAttester {
    let transport = SocketTransport::connect(&tpm.socket()).unwrap();
    TpmAttester::new(Variant::QemuVtpm, Tpm::new(transport)).unwrap()
}

fn verifier(membership: Membership) -> TpmVerifier {
    let kernel = PcrValue::ZERO.event(&[11; 32]);
    let image = ReferenceValues::new(
        "image",
        BTreeMap::from([(KERNEL, kernel), (PcrIndex::new(12), PcrValue::ZERO)]),
    );
    TpmVerifier::new(
        Variant::QemuVtpm,
        TrustBasis::HostSoftware,
        PcrPolicy::new(image, membership),
    )
}

fn binding() -> ReportBinding {
    ReportBinding::standalone(&Nonce::generate())
}

fn boot(attester: &TpmAttester) {
    attester
        .with_tpm(|tpm| tpm.extend_with_event(KERNEL, &[11; 32]))
        .unwrap();
}

#[test]
fn a_node_is_new_until_it_measures_its_cluster_id() {
    let tpm = SoftwareTpm::start().unwrap();
    let node = attester(&tpm);
    boot(&node);
    let cluster = ClusterId::new([42; 32]);
    let check = |membership| {
        let binding = binding();
        let evidence = node.attest(&binding).unwrap();
        verifier(membership).appraise(&evidence, &binding).unwrap()
    };

    assert_eq!(check(Membership::New).outcome(), Outcome::Affirming);
    assert_eq!(check(Membership::Of(cluster)).outcome(), Outcome::Contraindicated);
    assert_eq!(check(Membership::Any).findings, [Finding::NotAMember]);

    node.with_tpm(|tpm| tpm.extend_with_event(PcrIndex::CLUSTER_ID, cluster.as_bytes()))
        .unwrap();
    assert_eq!(check(Membership::New).outcome(), Outcome::Contraindicated);
    assert_eq!(check(Membership::Of(cluster)).outcome(), Outcome::Affirming);
    assert_eq!(check(Membership::Any).outcome(), Outcome::Affirming);
    assert_eq!(
        check(Membership::Of(ClusterId::new([43; 32]))).outcome(),
        Outcome::Contraindicated
    );
}

#[test]
fn another_kernel_is_contraindicated() {
    let tpm = SoftwareTpm::start().unwrap();
    let node = attester(&tpm);
    let binding = binding();
    let evidence = node.attest(&binding).unwrap();
    let result = verifier(Membership::New).appraise(&evidence, &binding).unwrap();
    let [
        Finding::Pcr {
            index: KERNEL,
            required: true,
            ..
        },
    ] = result.findings[..]
    else {
        panic!("{result:?}")
    };
}

#[test]
fn evidence_does_not_serve_twice() {
    let tpm = SoftwareTpm::start().unwrap();
    let node = attester(&tpm);
    let evidence = node.attest(&binding()).unwrap();
    assert!(verifier(Membership::New).appraise(&evidence, &binding()).is_err());
}

#[test]
fn identity_stays_with_one_machine_and_differs_between_two() {
    let (one, other) = (SoftwareTpm::start().unwrap(), SoftwareTpm::start().unwrap());
    let identity = attester(&one).identity();
    assert_eq!(attester(&one).identity(), identity);
    assert_ne!(attester(&other).identity(), identity);
}
