//! The binary header before each JSON area, and its checksum.

use std::ops::Range;

use aws_lc_rs::digest::{self, SHA256};
use cluster_types::DiskUuid;

use super::error::{Found, HeaderCopy, HeaderError};
use super::layout::{BINARY_SIZE, COPY_SIZE, METADATA_SIZE, VERSION};

// LUKS2 On-Disk Format Specification 1.1.4, section 2.1. Numbers are big endian, texts end with a zero byte.
const MAGIC: Range<usize> = 0..6;
const VERSION_FIELD: Range<usize> = 6..8;
const HEADER_SIZE_FIELD: Range<usize> = 8..16;
const SEQUENCE: Range<usize> = 16..24;
const LABEL: Range<usize> = 24..72;
const CHECKSUM_ALGORITHM: Range<usize> = 72..104;
const SALT: Range<usize> = 104..168;
const UUID: Range<usize> = 168..208;
const SUBSYSTEM: Range<usize> = 208..256;
const HEADER_OFFSET: Range<usize> = 256..264;
const PADDING: Range<usize> = 264..448;
const CHECKSUM: Range<usize> = 448..480;
/// The rest of the checksum field, which has room for 64 bytes, and the padding up to the JSON area.
const END_PADDING: Range<usize> = 480..BINARY_SIZE;

const SHA256_NAME: &[u8] = b"sha256";

/// What may differ between valid binary headers of one copy.
pub(super) struct Binary {
    pub(super) uuid: DiskUuid,
    pub(super) sequence: u64,
    pub(super) salt: [u8; 64],
}

impl HeaderCopy {
    /// Both copies, in the order on the disk.
    pub(super) const ALL: [Self; 2] = [Self::Primary, Self::Secondary];

    /// The place of this copy, from the start of the disk.
    pub(super) const fn range(self) -> Range<usize> {
        match self {
            Self::Primary => 0..COPY_SIZE,
            Self::Secondary => COPY_SIZE..METADATA_SIZE,
        }
    }

    const fn magic(self) -> &'static [u8; 6] {
        match self {
            Self::Primary => b"LUKS\xba\xbe",
            Self::Secondary => b"SKUL\xba\xbe",
        }
    }
}

impl Binary {
    /// Parses and checks one copy's binary header, including its checksum.
    pub(super) fn parse(bytes: &[u8; COPY_SIZE], copy: HeaderCopy) -> Result<Self, HeaderError> {
        check_start(bytes, copy)?;
        check_checksum(bytes, copy)?;
        let label = text(&bytes[LABEL]);
        if !label.is_empty() {
            return Err(HeaderError::Label {
                copy,
                found: Found::bytes(label),
            });
        }
        let subsystem = text(&bytes[SUBSYSTEM]);
        if !subsystem.is_empty() {
            return Err(HeaderError::Subsystem {
                copy,
                found: Found::bytes(subsystem),
            });
        }
        for padding in [LABEL, SUBSYSTEM, PADDING, END_PADDING] {
            if let Some(position) = bytes[padding.clone()].iter().position(|byte| *byte != 0) {
                return Err(HeaderError::Padding {
                    copy,
                    offset: padding.start + position,
                });
            }
        }
        Ok(Self {
            uuid: uuid(&bytes[UUID], copy)?,
            sequence: number(&bytes[SEQUENCE]),
            salt: bytes[SALT].try_into().expect("the range has 64 bytes"),
        })
    }

    /// Writes this copy's binary header before the JSON that is already there, with its checksum.
    pub(super) fn encode(&self, bytes: &mut [u8; COPY_SIZE], copy: HeaderCopy) {
        let mut put = |field: Range<usize>, value: &[u8]| {
            bytes[field.start..field.start + value.len()].copy_from_slice(value);
        };
        put(MAGIC, copy.magic());
        put(VERSION_FIELD, &VERSION.to_be_bytes());
        put(HEADER_SIZE_FIELD, &(COPY_SIZE as u64).to_be_bytes());
        put(SEQUENCE, &self.sequence.to_be_bytes());
        put(CHECKSUM_ALGORITHM, SHA256_NAME);
        put(SALT, &self.salt);
        put(UUID, self.uuid.to_string().as_bytes());
        put(HEADER_OFFSET, &(copy.range().start as u64).to_be_bytes());
        seal(bytes);
    }
}

/// Computes and stores one copy's checksum.
pub(super) fn seal(bytes: &mut [u8; COPY_SIZE]) {
    let checksum = checksum(bytes);
    bytes[CHECKSUM].copy_from_slice(&checksum);
}

/// Checks that this is a LUKS2 header, of our size, in its own place.
fn check_start(bytes: &[u8; COPY_SIZE], copy: HeaderCopy) -> Result<(), HeaderError> {
    if bytes[MAGIC] != *copy.magic() {
        return Err(HeaderError::Magic {
            copy,
            found: Found::bytes(&bytes[MAGIC]),
        });
    }
    let version = u16::from_be_bytes([bytes[VERSION_FIELD.start], bytes[VERSION_FIELD.start + 1]]);
    if version != VERSION {
        return Err(HeaderError::Version { copy, found: version });
    }
    let size = number(&bytes[HEADER_SIZE_FIELD]);
    if size != COPY_SIZE as u64 {
        return Err(HeaderError::HeaderSize { copy, found: size });
    }
    let expected = copy.range().start as u64;
    let offset = number(&bytes[HEADER_OFFSET]);
    if offset != expected {
        return Err(HeaderError::HeaderOffset {
            copy,
            expected,
            found: offset,
        });
    }
    Ok(())
}

fn check_checksum(bytes: &[u8; COPY_SIZE], copy: HeaderCopy) -> Result<(), HeaderError> {
    let algorithm = text(&bytes[CHECKSUM_ALGORITHM]);
    if algorithm != SHA256_NAME {
        return Err(HeaderError::ChecksumAlgorithm {
            copy,
            found: Found::bytes(algorithm),
        });
    }
    let computed = checksum(bytes);
    if bytes[CHECKSUM] != computed {
        return Err(HeaderError::Checksum {
            copy,
            found: hex(&bytes[CHECKSUM]),
            computed: hex(&computed),
        });
    }
    Ok(())
}

/// SHA-256 over binary header and JSON area, with zeros in place of the whole checksum field.
fn checksum(bytes: &[u8; COPY_SIZE]) -> [u8; 32] {
    const FIELD_END: usize = CHECKSUM.start + 64;
    let mut context = digest::Context::new(&SHA256);
    context.update(&bytes[..CHECKSUM.start]);
    context.update(&[0; FIELD_END - CHECKSUM.start]);
    context.update(&bytes[FIELD_END..]);
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn uuid(field: &[u8], copy: HeaderCopy) -> Result<DiskUuid, HeaderError> {
    let text = String::from_utf8_lossy(text(field));
    text.parse().map_err(|source| HeaderError::Uuid { copy, source })
}

/// The field up to its first zero byte.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

fn number(field: &[u8]) -> u64 {
    u64::from_be_bytes(field.try_into().expect("the range has 8 bytes"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
