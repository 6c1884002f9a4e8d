use std::fmt;

use cluster_types::{DiskUuid, ParseDiskUuidError};

use super::layout::{
    AF_STRIPES, AREA_CIPHER_KEY_SIZE, AREA_SIZE, BINARY_SIZE, HEADER_SIZE, JSON_SIZE, KEYSLOTS_SIZE, MAX_CPUS,
    MAX_DIGEST_ITERATIONS, MAX_MEMORY_KIB, MAX_TIME, METADATA_SIZE, MIN_DIGEST_ITERATIONS, MIN_MEMORY_KIB, SECTOR_SIZE,
    VERSION, VOLUME_KEY_SIZE,
};

/// A LUKS2 header that is not one of ours. Each check has a variant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message says what each field is")]
pub enum HeaderError {
    /// It has fewer bytes than two copies of the header.
    #[error("header is truncated: it has {found} bytes, expected {METADATA_SIZE}")]
    Truncated {
        /// Length in bytes.
        found: usize,
    },
    /// There is no LUKS2 header where this copy should be.
    #[error("{copy} header does not start with the LUKS2 magic: {found}")]
    Magic {
        copy: HeaderCopy,
        /// The first six bytes.
        found: Found,
    },
    /// Another format version.
    #[error("{copy} header has version {found}, expected {VERSION}")]
    Version {
        copy: HeaderCopy,
        /// What it says.
        found: u16,
    },
    /// Another size of binary header and JSON area.
    #[error("{copy} header says it has {found} bytes, expected {BINARY_SIZE} + {JSON_SIZE}")]
    HeaderSize {
        copy: HeaderCopy,
        /// What it says.
        found: u64,
    },
    /// The header says that it is elsewhere.
    #[error("{copy} header says it is at {found}, but it was read at {expected}")]
    HeaderOffset {
        copy: HeaderCopy,
        /// Where it was read.
        expected: u64,
        /// What it says.
        found: u64,
    },
    /// A label, which we never set.
    #[error("{copy} header has label {found}, expected none")]
    Label { copy: HeaderCopy, found: Found },
    /// A subsystem, which we never set.
    #[error("{copy} header has subsystem {found}, expected none")]
    Subsystem { copy: HeaderCopy, found: Found },
    /// Another checksum algorithm.
    #[error("{copy} header has checksum algorithm {found}, expected sha256")]
    ChecksumAlgorithm { copy: HeaderCopy, found: Found },
    /// The checksum is wrong.
    #[error("{copy} header has checksum {found}, but its bytes give {computed}")]
    Checksum {
        copy: HeaderCopy,
        /// What the header says, in hexadecimal.
        found: String,
        /// What we computed.
        computed: String,
    },
    /// Bytes that must be zero are not.
    #[error("{copy} header has a nonzero byte in its padding, at offset {offset}")]
    Padding {
        copy: HeaderCopy,
        /// Offset from the start of this copy.
        offset: usize,
    },
    /// The UUID is not in canonical form.
    #[error("{copy} header has an invalid UUID")]
    Uuid {
        copy: HeaderCopy,
        /// What is wrong with it.
        source: ParseDiskUuidError,
    },
    /// The UUID is that of another disk.
    #[error("header belongs to disk {found}, expected disk {expected}")]
    OtherDisk {
        /// The expected disk.
        expected: DiskUuid,
        /// The disk in the header.
        found: DiskUuid,
    },
    /// The copies have different UUIDs.
    #[error("primary header belongs to disk {primary}, secondary header to disk {secondary}")]
    CopiesDifferInUuid {
        /// In the primary header.
        primary: DiskUuid,
        /// In the secondary header.
        secondary: DiskUuid,
    },
    /// The copies have different sequence numbers.
    #[error("primary header has sequence number {primary}, secondary header has {secondary}")]
    CopiesDifferInSequence {
        /// In the primary header.
        primary: u64,
        /// In the secondary header.
        secondary: u64,
    },
    /// The copies have different JSON areas.
    #[error("JSON areas of primary and secondary header differ at byte {offset}")]
    CopiesDifferInJson {
        /// First byte that differs.
        offset: usize,
    },
    /// The JSON text does not end before the area does.
    #[error("JSON area is not terminated")]
    JsonUnterminated,
    /// Not our JSON: malformed, with an unknown, missing or duplicate field, or with another type.
    #[error("JSON area does not have our shape")]
    Json(#[source] serde_json::Error),
    /// Not one keyslot.
    #[error("header has {found} keyslots, expected 1")]
    KeyslotCount { found: usize },
    /// The one keyslot is not keyslot 0.
    #[error("keyslot has id {found}, expected 0")]
    KeyslotId { found: Found },
    /// A keyslot of another type than LUKS2 has.
    #[error("keyslot has type {found}, expected luks2")]
    KeyslotType { found: Found },
    /// A volume key of another size.
    #[error("keyslot holds a volume key of {found} bytes, expected {VOLUME_KEY_SIZE}")]
    VolumeKeySize {
        /// Size in bytes.
        found: u64,
    },
    /// Another anti-forensic splitter.
    #[error("keyslot has splitter {found}, expected luks1")]
    AfType { found: Found },
    /// Another number of stripes.
    #[error("keyslot has {found} stripes, expected {AF_STRIPES}")]
    AfStripes { found: u64 },
    /// Another hash in the splitter.
    #[error("keyslot's splitter has hash {found}, expected sha256")]
    AfHash { found: Found },
    /// Another area type.
    #[error("keyslot area has type {found}, expected raw")]
    AreaType { found: Found },
    /// Another cipher in the keyslot, the null cipher among them.
    #[error("keyslot area has cipher {found}, expected aes-xts-plain64")]
    AreaCipher { found: Found },
    /// Another size of the key that encrypts the keyslot.
    #[error("keyslot area has a key of {found} bytes, expected {AREA_CIPHER_KEY_SIZE}")]
    AreaKeySize {
        /// Size in bytes.
        found: u64,
    },
    /// The area has another size.
    #[error("keyslot area has {found} bytes, expected {AREA_SIZE}")]
    AreaSize {
        /// Size in bytes, as written.
        found: Found,
    },
    /// The area is where no keyslot can be.
    #[error("keyslot area is at {found}, expected a multiple of 4096 inside the keyslots area")]
    AreaOffset {
        /// Offset in bytes, as written.
        found: Found,
    },
    /// Another key derivation.
    #[error("keyslot has key derivation {found}, expected argon2id")]
    KdfType { found: Found },
    /// Too many passes, or none.
    #[error("argon2id takes {found} passes, expected 1 to {MAX_TIME}")]
    KdfTime { found: u64 },
    /// Too much memory, or too little.
    #[error("argon2id takes {found} KiB of memory, expected {MIN_MEMORY_KIB} to {MAX_MEMORY_KIB}")]
    KdfMemory { found: u64 },
    /// Too many threads, or none.
    #[error("argon2id takes {found} threads, expected 1 to {MAX_CPUS}")]
    KdfCpus { found: u64 },
    /// A salt that is not 32 bytes in base64.
    #[error("argon2id salt is {found}, expected 32 bytes in base64")]
    KdfSalt { found: Found },
    /// Not one segment.
    #[error("header has {found} segments, expected 1")]
    SegmentCount { found: usize },
    /// The one segment is not segment 0.
    #[error("segment has id {found}, expected 0")]
    SegmentId { found: Found },
    /// A segment that is not encrypted.
    #[error("segment has type {found}, expected crypt")]
    SegmentType { found: Found },
    /// The data start elsewhere.
    #[error("segment starts at {found}, expected {HEADER_SIZE}")]
    SegmentOffset {
        /// Offset in bytes, as written.
        found: Found,
    },
    /// The segment does not reach to the end of the disk.
    #[error("segment has size {found}, expected dynamic")]
    SegmentSize { found: Found },
    /// Initialisation vectors start at another number.
    #[error("segment has IV tweak {found}, expected 0")]
    IvTweak { found: Found },
    /// Another cipher on the data, the null cipher among them.
    #[error("segment has cipher {found}, expected aes-xts-plain64")]
    SegmentCipher { found: Found },
    /// Another sector size.
    #[error("segment has sectors of {found} bytes, expected {SECTOR_SIZE}")]
    SectorSize {
        /// Size in bytes.
        found: u64,
    },
    /// There is no integrity protection, so whoever writes to the disk chooses what we read.
    #[error("segment has no integrity, expected hmac(sha256)")]
    IntegrityMissing,
    /// Another integrity on the data, one without a key among them.
    #[error("segment has integrity {found}, expected hmac(sha256)")]
    IntegrityType { found: Found },
    /// The integrity journal is encrypted, or says so.
    #[error("segment has journal encryption {found}, expected none")]
    JournalEncryption { found: Found },
    /// The integrity journal is authenticated, or says so.
    #[error("segment has journal integrity {found}, expected none")]
    JournalIntegrity { found: Found },
    /// The segment has flags, as a re-encryption leaves them.
    #[error("segment has flags {found}, expected none")]
    SegmentFlags { found: Found },
    /// Not one digest.
    #[error("header has {found} digests, expected 1")]
    DigestCount { found: usize },
    /// The one digest is not digest 0.
    #[error("digest has id {found}, expected 0")]
    DigestId { found: Found },
    /// Another derivation of the digest.
    #[error("digest has type {found}, expected pbkdf2")]
    DigestType { found: Found },
    /// Another hash in the derivation of the digest.
    #[error("digest has hash {found}, expected sha256")]
    DigestHash { found: Found },
    /// Too many iterations, or too few.
    #[error("digest takes {found} iterations, expected {MIN_DIGEST_ITERATIONS} to {MAX_DIGEST_ITERATIONS}")]
    DigestIterations { found: u64 },
    /// A salt that is not 32 bytes in base64.
    #[error("digest salt is {found}, expected 32 bytes in base64")]
    DigestSalt { found: Found },
    /// A digest that is not 32 bytes in base64.
    #[error("digest is {found}, expected 32 bytes in base64")]
    DigestValue { found: Found },
    /// The digest does not belong to our keyslot alone.
    #[error("digest belongs to keyslots {found}, expected keyslot 0")]
    DigestKeyslots { found: Found },
    /// The digest does not belong to our segment alone.
    #[error("digest belongs to segments {found}, expected segment 0")]
    DigestSegments { found: Found },
    /// There are other tokens besides ours.
    #[error("header has {found} tokens, expected at most 1")]
    TokenCount { found: usize },
    /// The one token is not token 0.
    #[error("token has id {found}, expected 0")]
    TokenId { found: Found },
    /// The token is not ours.
    #[error("token has type {found}, expected constellation-state-disk")]
    TokenType { found: Found },
    /// The token is bound to keyslots.
    #[error("token belongs to keyslots {found}, expected none")]
    TokenKeyslots { found: Found },
    /// Another size of the JSON area.
    #[error("configuration says the JSON area has {found} bytes, expected {JSON_SIZE}")]
    JsonSize { found: Found },
    /// Another size of the keyslots area.
    #[error("configuration says the keyslots area has {found} bytes, expected {KEYSLOTS_SIZE}")]
    KeyslotsSize { found: Found },
    /// There are flags, which would apply each time the disk is opened.
    #[error("configuration has flags {found}, expected none")]
    ConfigFlags { found: Found },
    /// There are requirements: a re-encryption is in progress, or is claimed to be.
    #[error("configuration has requirements {found}, expected none")]
    Requirements { found: Found },
}

/// One of the two copies of a LUKS2 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderCopy {
    /// The one at the start of the disk.
    Primary,
    /// The one that follows it.
    Secondary,
}

impl fmt::Display for HeaderCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        })
    }
}

/// A text from the disk, escaped and shortened, because the host chose it and it goes to the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found(String);

impl Found {
    /// How much of a text an error message shows.
    const MAX_CHARS: usize = 64;

    pub(super) fn text(text: &str) -> Self {
        Self(
            text.chars()
                .take(Self::MAX_CHARS)
                .flat_map(char::escape_default)
                .collect(),
        )
    }

    pub(super) fn bytes(bytes: &[u8]) -> Self {
        Self(bytes[..bytes.len().min(Self::MAX_CHARS)].escape_ascii().to_string())
    }

    pub(super) fn list(texts: &[String]) -> Self {
        Self::text(&texts.join(","))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.0)
    }
}
