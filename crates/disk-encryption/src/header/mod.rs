//! The LUKS2 header of a state disk: parser, strict check, encoder.
//!
//! LUKS2 authenticates nothing of its header, and the host can write it (CVE-2025-58356, CVE-2025-59054). So none of it
//! is believed:
//!
//! 1. The header is copied to memory once, and the disk's own copy is never looked at again.
//! 2. [`Metadata::parse`] compares every field with the one shape that [`crate::StateDisk::format`] makes. Unknown
//!    fields, absent fields and duplicates are refusals, not defaults.
//! 3. cryptsetup never sees the host's bytes. What it gets is [`Header::write_to`]'s encoding, made of our constants and
//!    the few values that differ from disk to disk: UUID, sequence number, salts, bounded cost parameters, volume key
//!    digest, place and content of the keyslot. A host that finds a text which our JSON parser and libcryptsetup's read
//!    differently gains nothing, because that text goes nowhere.
//!
//! # Security
//! What a successful check proves: opening the disk with this header uses AES-256-XTS with HMAC-SHA256 over 4096-byte sectors, and
//! costs at most what `layout` allows. What it does not prove: that the header is the newest one, that the disk belongs to
//! this node, or that the key is right. The first can only be known by someone who remembers the disk. The others follow from
//! the key, which is derived from the UUID and opens the keyslot only if both are the ones it was formatted with.

mod binary;
mod check;
mod error;
mod json;
pub(crate) mod layout;
mod unfinished;

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use cluster_types::DiskUuid;

pub use error::{Found, HeaderCopy, HeaderError};
pub use layout::HEADER_SIZE;

use binary::Binary;
use check::Parameters;
use json::Document;
use layout::{AREA_SIZE, BINARY_SIZE, COPY_SIZE, JSON_SIZE, METADATA_SIZE};

/// A checked header and its keyslot: everything that is needed to open a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    metadata: Metadata,
    keyslot: Vec<u8>,
}

/// What a checked header says. Only [`Metadata::parse`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    uuid: DiskUuid,
    sequence: u64,
    salts: [[u8; 64]; 2],
    parameters: Parameters,
}

/// Which disk a header may belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedDisk {
    /// The one that this boot has formatted or opened.
    Is(DiskUuid),
    /// Nothing in memory names the disk yet. The UUID that is found selects the key, and a wrong key does not open.
    FirstSeen,
}

/// A header could not be read from a disk.
#[derive(Debug, thiserror::Error)]
pub enum ReadHeaderError {
    /// The disk cannot be read.
    #[error("cannot read the header")]
    Read(#[source] io::Error),
    /// It is not one of ours.
    #[error(transparent)]
    Refused(#[from] HeaderError),
}

impl Header {
    /// Copies a header to memory and checks it.
    ///
    /// # Errors
    /// When it cannot be read or is not exactly of our shape.
    pub fn read_from(source: &mut (impl Read + Seek), expected: ExpectedDisk) -> Result<Self, ReadHeaderError> {
        let mut bytes = Vec::with_capacity(METADATA_SIZE);
        source.seek(SeekFrom::Start(0)).map_err(ReadHeaderError::Read)?;
        source
            .take(METADATA_SIZE as u64)
            .read_to_end(&mut bytes)
            .map_err(ReadHeaderError::Read)?;
        let metadata = Metadata::parse(&bytes, expected)?;

        // Ciphertext without structure: whether it is the right one shows when the volume key is compared with the digest.
        let mut keyslot = vec![0; AREA_SIZE as usize];
        source
            .seek(SeekFrom::Start(metadata.parameters.area_offset))
            .map_err(ReadHeaderError::Read)?;
        source.read_exact(&mut keyslot).map_err(ReadHeaderError::Read)?;
        Ok(Self { metadata, keyslot })
    }

    /// Writes the header of a disk whose node has not joined. A power cut at any point leaves a disk that is as it was, one
    /// that is [unfinished](crate::Contents::Unfinished), or one with this header:
    ///
    /// 1. The first sector says that the header is unfinished.
    /// 2. Keyslot, secondary copy and the rest of the primary copy are written, in any order.
    /// 3. The first sector becomes that of the primary copy.
    ///
    /// `barrier` is called after each step; when it returns, what was written must be on the disk.
    ///
    /// # Security
    /// An unfinished disk is formatted again, so this must never write over the header of a node that holds anything.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write_to<T: Write + Seek>(
        &self,
        target: &mut T,
        mut barrier: impl FnMut(&mut T) -> io::Result<()>,
    ) -> io::Result<()> {
        let metadata = self.metadata.encode();
        let (first_sector, rest) = metadata.split_at(unfinished::SECTOR);

        write_at(target, 0, &unfinished::first_sector())?;
        barrier(target)?;
        write_at(target, self.metadata.parameters.area_offset, &self.keyslot)?;
        write_at(target, unfinished::SECTOR as u64, rest)?;
        barrier(target)?;
        write_at(target, 0, first_sector)?;
        barrier(target)
    }

    /// What the header says.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The same header for a disk of another UUID.
    pub(crate) fn of_disk(mut self, disk: DiskUuid) -> Self {
        self.metadata.uuid = disk;
        self
    }

    /// The same header one step later, with the mark set.
    pub(crate) fn marked(&self, initialised: bool) -> Self {
        let mut next = self.clone();
        next.metadata.sequence = self.metadata.sequence.saturating_add(1);
        next.metadata.parameters.token = Some(initialised);
        next
    }

    /// Where the keyslot lies, in bytes from the start of the disk.
    pub(crate) fn keyslot_area(&self) -> Range<u64> {
        let start = self.metadata.parameters.area_offset;
        start..start + AREA_SIZE
    }

    /// Whether both headers wrap the same volume key.
    pub(crate) fn has_volume_key_of(&self, other: &Self) -> bool {
        self.metadata.parameters.digest == other.metadata.parameters.digest
    }
}

impl Metadata {
    /// Parses both copies of a header, as read from offset 0, and compares them with our shape:
    ///
    /// 1. Each copy's binary header is LUKS2 with our sizes, its checksum is right, unused bytes are zero.
    /// 2. Both copies have the same UUID, sequence number and JSON area.
    /// 3. It is the header of the expected disk.
    /// 4. Every field of the JSON area has the value we would have written.
    ///
    /// Bytes behind the two copies are ignored.
    ///
    /// # Errors
    /// The first deviation that is found.
    pub fn parse(bytes: &[u8], expected: ExpectedDisk) -> Result<Self, HeaderError> {
        let truncated = HeaderError::Truncated { found: bytes.len() };
        let metadata = bytes.first_chunk::<METADATA_SIZE>().ok_or(truncated)?;
        let [primary, secondary] = HeaderCopy::ALL.map(|copy| Binary::parse(copy_of(metadata, copy), copy));
        let (primary, secondary) = (primary?, secondary?);
        let json = check_copies(metadata, &primary, &secondary)?;
        check_disk(primary.uuid, expected)?;
        let document: Document = serde_json::from_slice(json).map_err(HeaderError::Json)?;
        Ok(Self {
            uuid: primary.uuid,
            sequence: primary.sequence,
            salts: [primary.salt, secondary.salt],
            parameters: document.check()?,
        })
    }

    /// The UUID of the disk.
    #[must_use]
    pub fn disk(&self) -> DiskUuid {
        self.uuid
    }

    /// Whether the disk says that its node has become part of a cluster.
    ///
    /// The host can write this mark. It decides how a boot proceeds, never which key or data are accepted.
    #[must_use]
    pub fn is_initialised(&self) -> bool {
        self.parameters.token == Some(true)
    }

    /// Both copies, byte by byte as libcryptsetup would have written them.
    fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(&self.parameters.document()).expect("texts and numbers can be written as JSON");
        let mut bytes = vec![0; METADATA_SIZE];
        for (copy, salt) in HeaderCopy::ALL.into_iter().zip(self.salts) {
            let half: &mut [u8; COPY_SIZE] = (&mut bytes[copy.range()])
                .try_into()
                .expect("the range has the size of a copy");
            half[BINARY_SIZE..BINARY_SIZE + json.len()].copy_from_slice(&json);
            Binary {
                uuid: self.uuid,
                sequence: self.sequence,
                salt,
            }
            .encode(half, copy);
        }
        bytes
    }
}

/// Whether a disk begins as [`Header::write_to`] leaves it until it is done.
///
/// The host can write this too. It gains what it also gains by zeros: a node that counts as new.
///
/// # Errors
/// When the disk cannot be read.
pub(crate) fn is_unfinished(device: &mut (impl Read + Seek)) -> io::Result<bool> {
    let mut sector = Vec::with_capacity(unfinished::SECTOR);
    device.seek(SeekFrom::Start(0))?;
    device.take(unfinished::SECTOR as u64).read_to_end(&mut sector)?;
    Ok(sector == unfinished::first_sector())
}

/// Recomputes the checksums of both copies of a header. A checksum protects from no attacker; tests and the fuzz target use
/// this to reach the checks behind it.
pub fn repair_checksums(bytes: &mut [u8]) {
    for copy in HeaderCopy::ALL {
        if let Some(half) = bytes.get_mut(copy.range()).and_then(|half| half.try_into().ok()) {
            binary::seal(half);
        }
    }
}

fn write_at(target: &mut (impl Write + Seek), offset: u64, bytes: &[u8]) -> io::Result<()> {
    target.seek(SeekFrom::Start(offset))?;
    target.write_all(bytes)
}

fn copy_of(metadata: &[u8; METADATA_SIZE], copy: HeaderCopy) -> &[u8; COPY_SIZE] {
    metadata[copy.range()]
        .try_into()
        .expect("the range has the size of a copy")
}

/// Compares the two copies and returns the JSON text they share.
fn check_copies<'a>(
    metadata: &'a [u8; METADATA_SIZE],
    primary: &Binary,
    secondary: &Binary,
) -> Result<&'a [u8], HeaderError> {
    if primary.uuid != secondary.uuid {
        return Err(HeaderError::CopiesDifferInUuid {
            primary: primary.uuid,
            secondary: secondary.uuid,
        });
    }
    if primary.sequence != secondary.sequence {
        return Err(HeaderError::CopiesDifferInSequence {
            primary: primary.sequence,
            secondary: secondary.sequence,
        });
    }
    let [one, other] = HeaderCopy::ALL.map(|copy| &copy_of(metadata, copy)[BINARY_SIZE..]);
    if let Some(offset) = one.iter().zip(other).position(|(one, other)| one != other) {
        return Err(HeaderError::CopiesDifferInJson { offset });
    }
    let end = one
        .iter()
        .position(|byte| *byte == 0)
        .ok_or(HeaderError::JsonUnterminated)?;
    if let Some(position) = one[end..].iter().position(|byte| *byte != 0) {
        let offset = BINARY_SIZE + end + position;
        return Err(HeaderError::Padding {
            copy: HeaderCopy::Primary,
            offset,
        });
    }
    debug_assert_eq!(one.len(), JSON_SIZE);
    Ok(&one[..end])
}

fn check_disk(found: DiskUuid, expected: ExpectedDisk) -> Result<(), HeaderError> {
    match expected {
        ExpectedDisk::Is(expected) if expected != found => Err(HeaderError::OtherDisk { expected, found }),
        ExpectedDisk::Is(_) | ExpectedDisk::FirstSeen => Ok(()),
    }
}

#[cfg(test)]
mod power_cuts;
#[cfg(test)]
mod real;
#[cfg(test)]
pub(crate) mod tests;
