//! Headers that cryptsetup wrote. `testdata/README.md` says where they come from.

use super::*;

const REKEYED: &[u8] = include_bytes!("../../testdata/rekeyed.luks2");
const PREDECESSOR: &[u8] = include_bytes!("../../testdata/predecessor.luks2");

fn parse(bytes: &[u8]) -> Metadata {
    Metadata::parse(bytes, ExpectedDisk::FirstSeen).expect("header was refused")
}

#[test]
fn accepts_header_of_a_rekeyed_disk() {
    assert!(parse(REKEYED).is_initialised());
}

#[test]
fn accepts_header_of_the_predecessor() {
    assert!(parse(PREDECESSOR).is_initialised());
}

#[test]
fn encodes_what_cryptsetup_wrote_byte_for_byte() {
    for bytes in [REKEYED, PREDECESSOR] {
        assert!(parse(bytes).encode() == bytes, "encoding differs");
    }
}
