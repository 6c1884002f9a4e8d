//! What comes from a key service: sealed, as a join service could pass it on, and opened.

#![no_main]

use std::sync::LazyLock;

use attestation::{Nonce, ReportBinding};
use cluster_types::KeyServicePublicKey;
use libfuzzer_sys::fuzz_target;
use node_secrets::{NodeSecrets, SealingKey, open};

static KEY: LazyLock<SealingKey> = LazyLock::new(SealingKey::generate);

fuzz_target!(|bytes: &[u8]| {
    let binding = ReportBinding::standalone(&Nonce::new([1; 32]));
    let _ = open(bytes, &KEY, &binding, &KeyServicePublicKey::new([1; 32]));
    let _ = NodeSecrets::parse(bytes);
});
