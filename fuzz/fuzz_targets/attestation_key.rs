//! The public area of a key, which a peer chooses freely.

#![no_main]

use attestation_tpm::AttestationKey;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = AttestationKey::parse(bytes);
});
