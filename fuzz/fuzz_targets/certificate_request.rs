//! The request for a kubelet's certificate that a joining node sends.

#![no_main]

#[allow(dead_code, reason = "a module of a program, which is not a library")]
#[path = "../../apps/join-service/src/certificate.rs"]
mod certificate;

use certificate::KubeletRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|der: &[u8]| {
    let _ = KubeletRequest::parse(der);
    let _ = KubeletRequest::parse_client(der);
});
