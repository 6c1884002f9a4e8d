//! Requests of gRPC callers: `init.API` on a new node, `kms.API` of the key service.

#![no_main]

#[allow(dead_code, reason = "a module of a program, which is not a library")]
#[path = "../../apps/bootstrapper/src/request.rs"]
mod init;
#[allow(dead_code, reason = "a module of a program, which is not a library")]
#[path = "../../apps/key-service/src/request.rs"]
mod keys;

use grpc_api::init::InitRequest;
use grpc_api::kms::{AdmitNodeRequest, DrawNonceRequest, ReadmitNodeRequest};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = InitRequest::decode(bytes) {
        let _ = init::InitRequest::parse(message);
    }
    if let Ok(message) = DrawNonceRequest::decode(bytes) {
        let _ = keys::parse_purpose(message);
    }
    if let Ok(message) = AdmitNodeRequest::decode(bytes) {
        let _ = keys::Request::parse_admit(message);
    }
    if let Ok(message) = ReadmitNodeRequest::decode(bytes) {
        let _ = keys::Request::parse_readmit(message);
    }
});
