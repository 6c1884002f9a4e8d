//! Answers of the metadata service, which is the host's.

#![no_main]

#[allow(dead_code, reason = "a module of the crate, which does not offer it to others")]
#[path = "../../crates/cloud-metadata/src/address.rs"]
mod address;
#[allow(dead_code, reason = "a module of the crate, which does not offer it to others")]
#[path = "../../crates/cloud-metadata/src/instance.rs"]
mod instance;
#[allow(dead_code, reason = "a module of the crate, which does not offer it to others")]
#[path = "../../crates/cloud-metadata/src/network.rs"]
mod network;

use address::{ApiEndpoint, NotPrivate, PrivateAddress};
use cloud_metadata::QemuMetadata;
use instance::ParseMetadataError;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &[u8]| {
    let _ = instance::parse_instance(answer);
    let _ = instance::parse_peers(answer);
    let _ = instance::parse_endpoint(answer);
    let _ = instance::parse_init_secret_hash(answer);
    let _ = instance::parse_operator_key(answer);
    let _ = network::parse_network(answer);
    if let Ok(text) = std::str::from_utf8(answer) {
        let _ = QemuMetadata::at(text);
    }
});
