//! Evidence from a peer: whatever it sends, appraisal ends in a result or an error.

#![no_main]

use std::collections::BTreeMap;

use attestation::{Evidence, Nonce, ReportBinding, Verifier};
use attestation_tpm::{Membership, PcrPolicy};
use attestation_variants::qemu_vtpm;
use cluster_types::Variant;
use libfuzzer_sys::fuzz_target;
use measurements::{PcrIndex, PcrValue, ReferenceValues};

fuzz_target!(|bytes: &[u8]| {
    let image = ReferenceValues::new("image", BTreeMap::from([(PcrIndex::new(4), PcrValue::ZERO)]));
    let verifier = qemu_vtpm::verifier(PcrPolicy::new(image, Membership::New));
    let binding = ReportBinding::standalone(&Nonce::new([0; 32]));
    if let Ok(evidence) = Evidence::parse(bytes) {
        assert_eq!(Evidence::parse(&evidence.encode()).ok(), Some(evidence));
    }
    let body = Evidence { variant: Variant::QemuVtpm, body: bytes.to_vec() };
    let _ = verifier.appraise(&body, &binding);
});
