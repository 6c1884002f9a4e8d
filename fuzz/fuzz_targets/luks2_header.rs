//! The LUKS2 header on a disk that the host can write.
//!
//! The first byte chooses how far the input is helped: not at all, or a JSON area inside a good frame with right checksums,
//! without which nearly every input ends at the first check.
#![no_main]

use disk_encryption::header::{ExpectedDisk, Metadata, repair_checksums};
use libfuzzer_sys::fuzz_target;

/// A real header, so that only the JSON area is left to find.
const GOOD: &[u8] = include_bytes!("../../crates/disk-encryption/testdata/rekeyed.luks2");
/// Binary header and JSON area of one copy.
const COPY_SIZE: usize = 16384;
/// Where the JSON area starts in a copy.
const JSON_START: usize = 4096;

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else {
        return;
    };
    if choice % 4 == 0 {
        let _ = Metadata::parse(bytes, ExpectedDisk::FirstSeen);
        return;
    }
    let mut header = GOOD.to_vec();
    let text = &bytes[..bytes.len().min(COPY_SIZE - JSON_START)];
    for copy in header.chunks_exact_mut(COPY_SIZE) {
        copy[JSON_START..].fill(0);
        copy[JSON_START..JSON_START + text.len()].copy_from_slice(text);
    }
    repair_checksums(&mut header);
    let _ = Metadata::parse(&header, ExpectedDisk::FirstSeen);
});
