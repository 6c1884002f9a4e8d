//! Evidence from a peer: whatever it sends, appraisal ends in a result or an error.

#![no_main]

use std::collections::BTreeMap;

use attestation::{
    Endorsements, Evidence, Expectations, ExpectedMembership, Nonce, ReportBinding, UnixTime, Variants, Verifier,
};
use attestation_variants::ReleaseVariants;
use libfuzzer_sys::fuzz_target;
use measurements::{PcrIndex, PcrReferences, PcrValue, ReferenceValues};

fuzz_target!(|bytes: &[u8]| {
    // The other variants bring a target of their own.
    let variant = ReleaseVariants.supported()[0];
    let values = PcrReferences::new(BTreeMap::from([(PcrIndex::new(4), PcrValue::ZERO)]));
    let expectations = Expectations {
        image: ReferenceValues::new(variant, "image", &values),
        membership: ExpectedMembership::New,
    };
    let verifier = ReleaseVariants.verifier(variant, &expectations).expect("the image is usable");
    let binding = ReportBinding::standalone(&Nonce::new([0; 32]));
    if let Ok(evidence) = Evidence::parse(bytes) {
        assert_eq!(Evidence::parse(&evidence.encode()).ok(), Some(evidence));
    }
    let body = Evidence { variant, body: bytes.to_vec() };
    let _ = verifier.appraise(&body, &Endorsements::None, &binding, UnixTime::from_seconds(0));
});
