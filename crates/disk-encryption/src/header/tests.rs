use std::io::Cursor;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::check::{Argon2id, VolumeKeyDigest};
use super::*;

const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";

fn disk() -> DiskUuid {
    DISK.parse().unwrap()
}

fn metadata() -> Metadata {
    Metadata {
        uuid: disk(),
        sequence: 3,
        salts: [[1; 64], [2; 64]],
        parameters: Parameters {
            area_offset: METADATA_SIZE as u64,
            kdf: Argon2id {
                time: 4,
                memory_kib: 65536,
                cpus: 4,
                salt: [3; 32],
            },
            digest: VolumeKeyDigest {
                iterations: 1000,
                salt: [4; 32],
                value: [5; 32],
            },
            token: Some(false),
        },
    }
}

/// A good header, for the tests of whoever uses headers too.
pub(crate) fn header() -> Header {
    Header {
        metadata: metadata(),
        keyslot: vec![6; AREA_SIZE as usize],
    }
}

impl Header {
    pub(crate) fn with_other_volume_key(mut self) -> Self {
        self.metadata.parameters.digest.value[0] ^= 1;
        self
    }

    pub(crate) fn with_keyslot_at(mut self, offset: u64) -> Self {
        self.metadata.parameters.area_offset = offset;
        self
    }
}

/// The call under test.
fn check(bytes: &[u8]) -> Result<Metadata, HeaderError> {
    Metadata::parse(bytes, ExpectedDisk::Is(disk()))
}

/// A good header of which bytes were changed and the checksums repaired.
fn with_bytes(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = metadata().encode();
    change(&mut bytes);
    repair_checksums(&mut bytes);
    bytes
}

/// A good header with another JSON text in both copies.
fn with_text(text: &str) -> Vec<u8> {
    with_bytes(|bytes| {
        for copy in HeaderCopy::ALL {
            let area = &mut bytes[copy.range()][BINARY_SIZE..];
            area.fill(0);
            area[..text.len()].copy_from_slice(text.as_bytes());
        }
    })
}

fn good_json() -> Value {
    serde_json::to_value(metadata().parameters.document()).unwrap()
}

fn with_json(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut document = good_json();
    change(&mut document);
    with_text(&document.to_string())
}

/// One test for one check: the good header, one change, one variant.
macro_rules! refuses {
    ($($name:ident: $bytes:expr => $variant:pat,)*) => {
        $(
            #[test]
            fn $name() {
                let refusal = check(&$bytes).expect_err("was accepted");
                assert!(matches!(refusal, $variant), "{refusal:?}");
            }
        )*
    };
}

/// The same for one field of the JSON area.
macro_rules! refuses_json {
    ($($name:ident: $pointer:literal = $value:expr => $variant:ident,)*) => {
        refuses! {
            $($name: with_json(|document| {
                *document.pointer_mut($pointer).expect($pointer) = $value;
            }) => HeaderError::$variant { .. },)*
        }
    };
}

refuses! {
    rejects_empty_input: [] => HeaderError::Truncated { found: 0 },
    rejects_truncated_header: metadata().encode()[..METADATA_SIZE - 1] => HeaderError::Truncated { .. },
    rejects_zeros: vec![0; METADATA_SIZE] => HeaderError::Magic { copy: HeaderCopy::Primary, .. },
    rejects_luks1: with_bytes(|b| b[7] = 1) => HeaderError::Version { found: 1, .. },
    rejects_primary_magic_in_secondary_copy:
        with_bytes(|b| b.copy_within(0..6, COPY_SIZE)) => HeaderError::Magic { copy: HeaderCopy::Secondary, .. },
    rejects_larger_header: with_bytes(|b| b[13] = 1) => HeaderError::HeaderSize { .. },
    rejects_header_that_lies_elsewhere: with_bytes(|b| b[262] = 1) => HeaderError::HeaderOffset { .. },
    rejects_label: with_bytes(|b| b[24] = b'x') => HeaderError::Label { .. },
    rejects_subsystem: with_bytes(|b| b[208] = b'x') => HeaderError::Subsystem { .. },
    rejects_text_behind_the_end_of_the_label: with_bytes(|b| b[26] = b'x') => HeaderError::Padding { offset: 26, .. },
    rejects_padding: with_bytes(|b| b[447] = 1) => HeaderError::Padding { offset: 447, .. },
    rejects_padding_behind_the_checksum: with_bytes(|b| b[512] = 1) => HeaderError::Padding { offset: 512, .. },
    rejects_other_checksum_algorithm: with_bytes(|b| b[75] = b'5') => HeaderError::ChecksumAlgorithm { .. },
    rejects_bad_checksum_of_primary_copy: {
        let mut bytes = metadata().encode();
        bytes[110] ^= 1;
        bytes
    } => HeaderError::Checksum { copy: HeaderCopy::Primary, .. },
    rejects_bad_checksum_of_secondary_copy: {
        let mut bytes = metadata().encode();
        bytes[COPY_SIZE + BINARY_SIZE] ^= 1;
        bytes
    } => HeaderError::Checksum { copy: HeaderCopy::Secondary, .. },
    rejects_uuid_in_upper_case: with_bytes(|b| b[169] = b'F') => HeaderError::Uuid { .. },
    rejects_copies_of_two_disks:
        with_bytes(|b| b[COPY_SIZE + 168] = b'4') => HeaderError::CopiesDifferInUuid { .. },
    rejects_copies_of_two_times: with_bytes(|b| b[23] = 4) => HeaderError::CopiesDifferInSequence { primary: 4, .. },
    rejects_copies_that_say_different_things:
        with_bytes(|b| b[COPY_SIZE + BINARY_SIZE + 30] ^= 1) => HeaderError::CopiesDifferInJson { offset: 30 },
    rejects_swapped_uuid: with_bytes(|b| {
        b[168] = b'4';
        b[COPY_SIZE + 168] = b'4';
    }) => HeaderError::OtherDisk { .. },
    rejects_json_without_end: with_text(&" ".repeat(JSON_SIZE)) => HeaderError::JsonUnterminated,
    rejects_text_behind_the_json: with_bytes(|b| {
        b[COPY_SIZE - 1] = b' ';
        b[METADATA_SIZE - 1] = b' ';
    }) => HeaderError::Padding { .. },
    rejects_second_document: with_text(&format!("{0}{0}", good_json())) => HeaderError::Json(_),
    rejects_unknown_field: with_json(|j| j["zeta"] = json!({})) => HeaderError::Json(_),
    rejects_unknown_field_of_keyslot: with_json(|j| j["keyslots"]["0"]["priority"] = json!(2)) => HeaderError::Json(_),
    rejects_duplicate_field:
        with_text(&good_json().to_string().replacen('{', "{\"tokens\":{},", 1)) => HeaderError::Json(_),
    rejects_duplicate_keyslot: {
        let keyslot = good_json()["keyslots"]["0"].to_string();
        let twice = format!("\"keyslots\":{{\"0\":{keyslot},");
        with_text(&good_json().to_string().replacen("\"keyslots\":{", &twice, 1))
    } => HeaderError::KeyslotCount { found: 2 },
    rejects_missing_field:
        with_json(|j| { j["segments"]["0"].as_object_mut().unwrap().remove("iv_tweak"); }) => HeaderError::Json(_),
    rejects_header_without_integrity:
        with_json(|j| { j["segments"]["0"].as_object_mut().unwrap().remove("integrity"); })
        => HeaderError::IntegrityMissing,
    rejects_no_keyslot: with_json(|j| j["keyslots"] = json!({})) => HeaderError::KeyslotCount { found: 0 },
    rejects_extra_keyslot:
        with_json(|j| j["keyslots"]["1"] = j["keyslots"]["0"].clone()) => HeaderError::KeyslotCount { found: 2 },
    rejects_keyslot_with_other_id:
        with_json(|j| j["keyslots"] = json!({ "1": j["keyslots"]["0"] })) => HeaderError::KeyslotId { .. },
    rejects_two_segments:
        with_json(|j| j["segments"]["1"] = j["segments"]["0"].clone()) => HeaderError::SegmentCount { found: 2 },
    rejects_segment_with_other_id:
        with_json(|j| j["segments"] = json!({ "1": j["segments"]["0"] })) => HeaderError::SegmentId { .. },
    rejects_two_digests:
        with_json(|j| j["digests"]["1"] = j["digests"]["0"].clone()) => HeaderError::DigestCount { found: 2 },
    rejects_digest_with_other_id:
        with_json(|j| j["digests"] = json!({ "1": j["digests"]["0"] })) => HeaderError::DigestId { .. },
    rejects_two_tokens:
        with_json(|j| j["tokens"]["1"] = j["tokens"]["0"].clone()) => HeaderError::TokenCount { found: 2 },
    rejects_token_with_other_id:
        with_json(|j| j["tokens"] = json!({ "1": j["tokens"]["0"] })) => HeaderError::TokenId { .. },
    rejects_segment_flags:
        with_json(|j| j["segments"]["0"]["flags"] = json!(["backup-final"])) => HeaderError::SegmentFlags { .. },
    rejects_config_flags:
        with_json(|j| j["config"]["flags"] = json!(["allow-discards"])) => HeaderError::ConfigFlags { .. },
    rejects_requirements: with_json(|j| {
        j["config"]["requirements"] = json!({ "mandatory": ["online-reencrypt-v2"] });
    }) => HeaderError::Requirements { .. },
}

refuses_json! {
    rejects_reencryption_keyslot: "/keyslots/0/type" = json!("reencrypt") => KeyslotType,
    rejects_shorter_volume_key: "/keyslots/0/key_size" = json!(64) => VolumeKeySize,
    rejects_other_splitter: "/keyslots/0/af/type" = json!("luks2") => AfType,
    rejects_fewer_stripes: "/keyslots/0/af/stripes" = json!(1) => AfStripes,
    rejects_other_splitter_hash: "/keyslots/0/af/hash" = json!("sha1") => AfHash,
    rejects_other_area_type: "/keyslots/0/area/type" = json!("journal") => AreaType,
    rejects_null_cipher_in_keyslot: "/keyslots/0/area/encryption" = json!("cipher_null-ecb") => AreaCipher,
    rejects_shorter_area_key: "/keyslots/0/area/key_size" = json!(32) => AreaKeySize,
    rejects_other_area_size: "/keyslots/0/area/size" = json!("258048") => AreaSize,
    rejects_area_over_the_metadata: "/keyslots/0/area/offset" = json!("28672") => AreaOffset,
    rejects_area_over_the_data: "/keyslots/0/area/offset" = json!("16396288") => AreaOffset,
    rejects_unaligned_area: "/keyslots/0/area/offset" = json!("32769") => AreaOffset,
    rejects_area_offset_with_sign: "/keyslots/0/area/offset" = json!("+32768") => AreaOffset,
    rejects_huge_area_offset: "/keyslots/0/area/offset" = json!("18446744073709551616") => AreaOffset,
    rejects_other_key_derivation: "/keyslots/0/kdf/type" = json!("argon2i") => KdfType,
    rejects_billion_passes: "/keyslots/0/kdf/time" = json!(1_000_000_000) => KdfTime,
    rejects_four_gibibytes_of_memory: "/keyslots/0/kdf/memory" = json!(4 << 20) => KdfMemory,
    rejects_no_memory: "/keyslots/0/kdf/memory" = json!(0) => KdfMemory,
    rejects_many_threads: "/keyslots/0/kdf/cpus" = json!(1000) => KdfCpus,
    rejects_empty_kdf_salt: "/keyslots/0/kdf/salt" = json!("") => KdfSalt,
    rejects_other_segment_type: "/segments/0/type" = json!("linear") => SegmentType,
    rejects_data_elsewhere: "/segments/0/offset" = json!("4096") => SegmentOffset,
    rejects_fixed_size: "/segments/0/size" = json!("4096") => SegmentSize,
    rejects_other_iv_tweak: "/segments/0/iv_tweak" = json!("8") => IvTweak,
    rejects_null_cipher_on_data: "/segments/0/encryption" = json!("cipher_null-ecb") => SegmentCipher,
    rejects_other_sector_size: "/segments/0/sector_size" = json!(512) => SectorSize,
    rejects_other_integrity: "/segments/0/integrity/type" = json!("none") => IntegrityType,
    rejects_other_journal_encryption:
        "/segments/0/integrity/journal_encryption" = json!("ctr(aes)") => JournalEncryption,
    rejects_other_journal_integrity:
        "/segments/0/integrity/journal_integrity" = json!("hmac(sha1)") => JournalIntegrity,
    rejects_other_digest_type: "/digests/0/type" = json!("sha256") => DigestType,
    rejects_other_digest_hash: "/digests/0/hash" = json!("sha1") => DigestHash,
    rejects_billion_digest_iterations: "/digests/0/iterations" = json!(1_000_000_000) => DigestIterations,
    rejects_single_digest_iteration: "/digests/0/iterations" = json!(1) => DigestIterations,
    rejects_empty_digest_salt: "/digests/0/salt" = json!("") => DigestSalt,
    rejects_short_digest: "/digests/0/digest" = json!("AAAA") => DigestValue,
    rejects_digest_of_other_keyslot: "/digests/0/keyslots" = json!(["1"]) => DigestKeyslots,
    rejects_digest_of_other_segment: "/digests/0/segments" = json!(["0", "1"]) => DigestSegments,
    rejects_token_of_somebody_else: "/tokens/0/type" = json!("systemd-tpm2") => TokenType,
    rejects_token_bound_to_keyslot: "/tokens/0/keyslots" = json!(["0"]) => TokenKeyslots,
    rejects_other_json_size: "/config/json_size" = json!("16384") => JsonSize,
    rejects_other_keyslots_size: "/config/keyslots_size" = json!("4096") => KeyslotsSize,
}

#[test]
fn accepts_what_it_encodes() {
    assert_eq!(check(&metadata().encode()).unwrap(), metadata());
}

#[test]
fn accepts_header_without_token() {
    let mut expected = metadata();
    expected.parameters.token = None;
    let found = check(&with_json(|j| j["tokens"] = json!({}))).unwrap();
    assert_eq!(found, expected);
    assert!(!found.is_initialised());
}

#[test]
fn accepts_any_uuid_when_no_disk_is_known() {
    let bytes = with_bytes(|b| {
        b[168] = b'4';
        b[COPY_SIZE + 168] = b'4';
    });
    let found = Metadata::parse(&bytes, ExpectedDisk::FirstSeen).unwrap();
    assert_eq!(found.disk().to_string(), DISK.replacen('3', "4", 1));
}

#[test]
fn header_reads_back_as_written() {
    let mut disk_bytes = Cursor::new(vec![0; HEADER_SIZE as usize]);
    header().write_to(&mut disk_bytes, |_| Ok(())).unwrap();
    let found = Header::read_from(&mut disk_bytes, ExpectedDisk::FirstSeen).unwrap();
    assert_eq!(found, header());
}

#[test]
fn disk_that_ends_inside_the_keyslot_is_refused() {
    let mut disk_bytes = Cursor::new(vec![0; HEADER_SIZE as usize]);
    header().write_to(&mut disk_bytes, |_| Ok(())).unwrap();
    let mut cut = Cursor::new(disk_bytes.into_inner()[..METADATA_SIZE + 100].to_vec());
    let refusal = Header::read_from(&mut cut, ExpectedDisk::FirstSeen).unwrap_err();
    assert!(matches!(refusal, ReadHeaderError::Read(_)), "{refusal:?}");
}

#[test]
fn mark_is_a_newer_header_of_the_same_disk() {
    let marked = header().marked(true);
    assert!(marked.metadata().is_initialised());
    assert!(marked.has_volume_key_of(&header()));
    assert_eq!(marked.metadata.sequence, 4);
    assert_eq!(marked.metadata().disk(), disk());
}

#[test]
fn error_shows_host_text_quoted_and_cut() {
    let text = format!("\u{1b}[2J\n{}", "x".repeat(1000));
    let refusal = check(&with_json(|j| j["segments"]["0"]["encryption"] = json!(text))).unwrap_err();
    let shown = refusal.to_string();
    assert!(shown.starts_with("segment has cipher '\\u{1b}[2J\\nxxx"), "{shown}");
    assert!(shown.ends_with("expected aes-xts-plain64"), "{shown}");
    assert!(shown.len() < 160, "{shown}");
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..METADATA_SIZE + 10)) {
        let _ = check(&bytes);
    }

    #[test]
    fn any_json_text_never_panics(text in ".{0,3000}") {
        let _ = check(&with_text(&text));
    }

    #[test]
    fn truncation_is_always_refused(length in 0..METADATA_SIZE) {
        prop_assert!(check(&metadata().encode()[..length]).is_err());
    }

    #[test]
    fn any_flipped_bit_is_refused_without_new_checksum(position in 0..METADATA_SIZE, bit in 0..8_u32) {
        let mut bytes = metadata().encode();
        bytes[position] ^= 1_u8 << bit;
        prop_assert!(check(&bytes).is_err());
    }

    #[test]
    fn what_is_accepted_is_encoded_the_same(position in BINARY_SIZE..BINARY_SIZE + 1100, byte in any::<u8>()) {
        let bytes = with_bytes(|b| {
            b[position] = byte;
            b[COPY_SIZE + position] = byte;
        });
        if let Ok(found) = check(&bytes) {
            prop_assert_eq!(check(&found.encode()).unwrap(), found);
        }
    }
}
