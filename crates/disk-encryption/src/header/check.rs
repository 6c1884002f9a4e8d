//! Comparison of a parsed JSON area with the one shape we format.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::error::{Found, HeaderError};
use super::json::{AntiForensic, Area, Config, Digest, Document, Entries, Integrity, Kdf, Keyslot, Segment, Token};
use super::layout::{
    AF_STRIPES, AREA_ALIGNMENT, AREA_CIPHER_KEY_SIZE, AREA_SIZE, CIPHER, HEADER_SIZE, JSON_SIZE, KEYSLOTS_SIZE,
    MAX_CPUS, MAX_DIGEST_ITERATIONS, MAX_MEMORY_KIB, MAX_TIME, METADATA_SIZE, MIN_DIGEST_ITERATIONS, MIN_MEMORY_KIB,
    SECTOR_SIZE, TOKEN_TYPE, VOLUME_KEY_SIZE,
};

/// Everything that may differ between two of our disks, besides UUID, sequence number and salts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) area_offset: u64,
    pub(super) kdf: Argon2id,
    pub(super) digest: VolumeKeyDigest,
    pub(super) token: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Argon2id {
    pub(super) time: u64,
    pub(super) memory_kib: u64,
    pub(super) cpus: u64,
    pub(super) salt: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VolumeKeyDigest {
    pub(super) iterations: u64,
    pub(super) salt: [u8; 32],
    pub(super) value: [u8; 32],
}

impl Document {
    /// Compares every field with our shape and returns those that may differ.
    pub(super) fn check(&self) -> Result<Parameters, HeaderError> {
        check_config(&self.config)?;
        let keyslot = only(
            &self.keyslots,
            |found| HeaderError::KeyslotCount { found },
            |found| HeaderError::KeyslotId { found },
        )?;
        let (area_offset, kdf) = check_keyslot(keyslot)?;
        let segment = only(
            &self.segments,
            |found| HeaderError::SegmentCount { found },
            |found| HeaderError::SegmentId { found },
        )?;
        check_segment(segment)?;
        let digest = only(
            &self.digests,
            |found| HeaderError::DigestCount { found },
            |found| HeaderError::DigestId { found },
        )?;
        let digest = check_digest(digest)?;
        let token = check_tokens(&self.tokens)?;
        Ok(Parameters {
            area_offset,
            kdf,
            digest,
            token,
        })
    }
}

impl Parameters {
    /// The document that libcryptsetup would have written for these parameters.
    pub(super) fn document(&self) -> Document {
        let zero = || vec!["0".to_owned()];
        Document {
            keyslots: Entries::one(Keyslot {
                kind: "luks2".into(),
                key_size: VOLUME_KEY_SIZE,
                af: AntiForensic {
                    kind: "luks1".into(),
                    stripes: AF_STRIPES,
                    hash: "sha256".into(),
                },
                area: Area {
                    kind: "raw".into(),
                    offset: self.area_offset.to_string(),
                    size: AREA_SIZE.to_string(),
                    encryption: CIPHER.into(),
                    key_size: AREA_CIPHER_KEY_SIZE,
                },
                kdf: Kdf {
                    kind: "argon2id".into(),
                    time: self.kdf.time,
                    memory: self.kdf.memory_kib,
                    cpus: self.kdf.cpus,
                    salt: BASE64.encode(self.kdf.salt),
                },
            }),
            tokens: self.token.map_or(Entries(Vec::new()), |initialized| {
                Entries::one(Token {
                    kind: TOKEN_TYPE.into(),
                    keyslots: Vec::new(),
                    disk_is_initialized: initialized,
                })
            }),
            segments: Entries::one(Segment {
                kind: "crypt".into(),
                offset: HEADER_SIZE.to_string(),
                size: "dynamic".into(),
                iv_tweak: "0".into(),
                encryption: CIPHER.into(),
                sector_size: SECTOR_SIZE,
                integrity: Some(Integrity {
                    kind: "hmac(sha256)".into(),
                    journal_encryption: "none".into(),
                    journal_integrity: "none".into(),
                }),
                flags: None,
            }),
            digests: Entries::one(Digest {
                kind: "pbkdf2".into(),
                keyslots: zero(),
                segments: zero(),
                hash: "sha256".into(),
                iterations: self.digest.iterations,
                salt: BASE64.encode(self.digest.salt),
                digest: BASE64.encode(self.digest.value),
            }),
            config: Config {
                json_size: JSON_SIZE.to_string(),
                keyslots_size: KEYSLOTS_SIZE.to_string(),
                flags: None,
                requirements: None,
            },
        }
    }
}

/// The one entry, with id 0.
fn only<T>(
    entries: &Entries<T>,
    count: impl FnOnce(usize) -> HeaderError,
    id: impl FnOnce(Found) -> HeaderError,
) -> Result<&T, HeaderError> {
    match entries.0.as_slice() {
        [(key, value)] if key == "0" => Ok(value),
        [(key, _)] => Err(id(Found::text(key))),
        entries => Err(count(entries.len())),
    }
}

/// Passes a text that is exactly the expected one.
fn same(found: &str, expected: &str, refuse: impl FnOnce(Found) -> HeaderError) -> Result<(), HeaderError> {
    if found == expected {
        Ok(())
    } else {
        Err(refuse(Found::text(found)))
    }
}

/// Passes a number that is exactly the expected one.
fn equal(found: u64, expected: u64, refuse: impl FnOnce(u64) -> HeaderError) -> Result<(), HeaderError> {
    if found == expected { Ok(()) } else { Err(refuse(found)) }
}

/// Passes a number between two bounds, both allowed.
fn within(found: u64, min: u64, max: u64, refuse: impl FnOnce(u64) -> HeaderError) -> Result<(), HeaderError> {
    if (min..=max).contains(&found) {
        Ok(())
    } else {
        Err(refuse(found))
    }
}

/// Passes a list that is absent or empty.
fn none(found: Option<&Vec<String>>, refuse: impl FnOnce(Found) -> HeaderError) -> Result<(), HeaderError> {
    match found {
        Some(texts) if !texts.is_empty() => Err(refuse(Found::list(texts))),
        _ => Ok(()),
    }
}

fn bytes32(text: &str, refuse: impl FnOnce(Found) -> HeaderError) -> Result<[u8; 32], HeaderError> {
    let bytes = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| refuse(Found::text(text)))
}

fn check_config(config: &Config) -> Result<(), HeaderError> {
    same(&config.json_size, &JSON_SIZE.to_string(), |found| {
        HeaderError::JsonSize { found }
    })?;
    same(&config.keyslots_size, &KEYSLOTS_SIZE.to_string(), |found| {
        HeaderError::KeyslotsSize { found }
    })?;
    none(config.flags.as_ref(), |found| HeaderError::ConfigFlags { found })?;
    let mandatory = config.requirements.as_ref().map(|requirements| &requirements.mandatory);
    none(mandatory, |found| HeaderError::Requirements { found })
}

fn check_keyslot(keyslot: &Keyslot) -> Result<(u64, Argon2id), HeaderError> {
    same(&keyslot.kind, "luks2", |found| HeaderError::KeyslotType { found })?;
    equal(keyslot.key_size, VOLUME_KEY_SIZE, |found| HeaderError::VolumeKeySize {
        found,
    })?;
    same(&keyslot.af.kind, "luks1", |found| HeaderError::AfType { found })?;
    equal(keyslot.af.stripes, AF_STRIPES, |found| HeaderError::AfStripes { found })?;
    same(&keyslot.af.hash, "sha256", |found| HeaderError::AfHash { found })?;
    let offset = check_area(&keyslot.area)?;
    Ok((offset, check_kdf(&keyslot.kdf)?))
}

fn check_area(area: &Area) -> Result<u64, HeaderError> {
    same(&area.kind, "raw", |found| HeaderError::AreaType { found })?;
    same(&area.encryption, CIPHER, |found| HeaderError::AreaCipher { found })?;
    equal(area.key_size, AREA_CIPHER_KEY_SIZE, |found| HeaderError::AreaKeySize {
        found,
    })?;
    same(&area.size, &AREA_SIZE.to_string(), |found| HeaderError::AreaSize {
        found,
    })?;
    let possible = METADATA_SIZE as u64..=HEADER_SIZE - AREA_SIZE;
    let offset = area.offset.parse::<u64>().ok();
    offset
        .filter(|offset| possible.contains(offset) && offset.is_multiple_of(AREA_ALIGNMENT))
        .filter(|offset| offset.to_string() == area.offset)
        .ok_or_else(|| HeaderError::AreaOffset {
            found: Found::text(&area.offset),
        })
}

fn check_kdf(kdf: &Kdf) -> Result<Argon2id, HeaderError> {
    same(&kdf.kind, "argon2id", |found| HeaderError::KdfType { found })?;
    within(kdf.time, 1, MAX_TIME, |found| HeaderError::KdfTime { found })?;
    within(kdf.memory, MIN_MEMORY_KIB, MAX_MEMORY_KIB, |found| {
        HeaderError::KdfMemory { found }
    })?;
    within(kdf.cpus, 1, MAX_CPUS, |found| HeaderError::KdfCpus { found })?;
    let salt = bytes32(&kdf.salt, |found| HeaderError::KdfSalt { found })?;
    Ok(Argon2id {
        time: kdf.time,
        memory_kib: kdf.memory,
        cpus: kdf.cpus,
        salt,
    })
}

fn check_segment(segment: &Segment) -> Result<(), HeaderError> {
    same(&segment.kind, "crypt", |found| HeaderError::SegmentType { found })?;
    same(&segment.offset, &HEADER_SIZE.to_string(), |found| {
        HeaderError::SegmentOffset { found }
    })?;
    same(&segment.size, "dynamic", |found| HeaderError::SegmentSize { found })?;
    same(&segment.iv_tweak, "0", |found| HeaderError::IvTweak { found })?;
    same(&segment.encryption, CIPHER, |found| HeaderError::SegmentCipher {
        found,
    })?;
    equal(segment.sector_size, SECTOR_SIZE, |found| HeaderError::SectorSize {
        found,
    })?;
    none(segment.flags.as_ref(), |found| HeaderError::SegmentFlags { found })?;
    let integrity = segment.integrity.as_ref().ok_or(HeaderError::IntegrityMissing)?;
    same(&integrity.kind, "hmac(sha256)", |found| HeaderError::IntegrityType {
        found,
    })?;
    same(&integrity.journal_encryption, "none", |found| {
        HeaderError::JournalEncryption { found }
    })?;
    same(&integrity.journal_integrity, "none", |found| {
        HeaderError::JournalIntegrity { found }
    })
}

fn check_digest(digest: &Digest) -> Result<VolumeKeyDigest, HeaderError> {
    same(&digest.kind, "pbkdf2", |found| HeaderError::DigestType { found })?;
    same(&digest.hash, "sha256", |found| HeaderError::DigestHash { found })?;
    within(
        digest.iterations,
        MIN_DIGEST_ITERATIONS,
        MAX_DIGEST_ITERATIONS,
        |found| HeaderError::DigestIterations { found },
    )?;
    if digest.keyslots != ["0"] {
        return Err(HeaderError::DigestKeyslots {
            found: Found::list(&digest.keyslots),
        });
    }
    if digest.segments != ["0"] {
        return Err(HeaderError::DigestSegments {
            found: Found::list(&digest.segments),
        });
    }
    Ok(VolumeKeyDigest {
        iterations: digest.iterations,
        salt: bytes32(&digest.salt, |found| HeaderError::DigestSalt { found })?,
        value: bytes32(&digest.digest, |found| HeaderError::DigestValue { found })?,
    })
}

fn check_tokens(tokens: &Entries<Token>) -> Result<Option<bool>, HeaderError> {
    let (id, token) = match tokens.0.as_slice() {
        [] => return Ok(None),
        [one] => (&one.0, &one.1),
        more => return Err(HeaderError::TokenCount { found: more.len() }),
    };
    same(id, "0", |found| HeaderError::TokenId { found })?;
    same(&token.kind, TOKEN_TYPE, |found| HeaderError::TokenType { found })?;
    if !token.keyslots.is_empty() {
        return Err(HeaderError::TokenKeyslots {
            found: Found::list(&token.keyslots),
        });
    }
    Ok(Some(token.disk_is_initialized))
}
