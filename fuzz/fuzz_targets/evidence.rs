//! Evidence of a TPM from a peer: whatever it sends, appraisal ends in a result or an error. Another technology needs a target of its own.

#![no_main]

use attestation::{
    Endorsements, Evidence, Expectations, ExpectedMembership, ExpectedStatements, Nonce, ReportBinding, TrustBasis,
    UnixTime, Verifier,
};
use attestation_tpm::{PcrPolicy, TpmVerifier};
use cluster_types::{OperatorPublicKey, Variant};
use libfuzzer_sys::fuzz_target;
use measurements::{PcrIndex, PcrReferences, PcrValue, ReferenceValues};

const VARIANT: Variant = Variant::QemuVtpm;

fuzz_target!(|bytes: &[u8]| {
    let values = PcrReferences::new(PcrIndex::IMAGE.map(|index| (index, PcrValue::ZERO)).into());
    let expectations = Expectations {
        image: ReferenceValues::new(VARIANT, "image", &values),
        statements: ExpectedStatements {
            operator: OperatorPublicKey::new([2; 32]),
            membership: ExpectedMembership::New,
        },
    };
    let policy = PcrPolicy::new(&expectations).expect("the image is usable");
    let verifier = TpmVerifier::new(VARIANT, TrustBasis::HostSoftware, policy);
    let binding = ReportBinding::standalone(&Nonce::new([0; 32]));
    if let Ok(evidence) = Evidence::parse(bytes) {
        assert_eq!(Evidence::parse(&evidence.encode()).ok(), Some(evidence));
    }
    let body = Evidence {
        variant: VARIANT,
        body: bytes.to_vec(),
    };
    let _ = verifier.appraise(&body, &Endorsements::None, &binding, UnixTime::from_seconds(0));
});
