//! Requests for certificates that joining nodes and members make.

#![no_main]

#[allow(dead_code, reason = "a module of a program, which is not a library")]
#[path = "../../apps/join-service/src/certificate.rs"]
mod certificate;

use certificate::KubeletRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|der: &[u8]| {
    if let Ok(request) = KubeletRequest::parse(der) {
        let _ = request.for_client();
    }
    if let Ok(request) = KubeletRequest::parse(der) {
        let _ = request.for_serving_at([10, 42, 2, 100].into());
    }
});
