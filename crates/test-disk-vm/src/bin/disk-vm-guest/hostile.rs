//! Headers a host could write.

use anyhow::{Context, Result, ensure};
use disk_encryption::header::repair_checksums;

/// What a host writes over a good header, and what the disk mapper must say to it.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) reason: &'static str,
    change: Change,
}

enum Change {
    /// Replaces one text in the JSON area of both copies.
    Json { from: &'static str, to: &'static str },
    /// Adds a second entry to a map of the JSON area: the text of entry 0 under id 1.
    Twice { map: &'static str },
    /// Does anything to the bytes; checksums are not repaired.
    Bytes(fn(&mut Vec<u8>)),
}

/// Bytes of both copies of a header.
pub(crate) const METADATA_SIZE: usize = 32768;
const COPY_SIZE: usize = 16384;
const BINARY_SIZE: usize = 4096;

const fn json(name: &'static str, from: &'static str, to: &'static str, reason: &'static str) -> Attack {
    Attack {
        name,
        reason,
        change: Change::Json { from, to },
    }
}

/// All of them. Each has its own reason, so that none is refused for another's sake.
pub(crate) const ATTACKS: &[Attack] = &[
    json(
        "null cipher on the data",
        r#""encryption":"aes-xts-plain64","sector_size""#,
        r#""encryption":"cipher_null-ecb","sector_size""#,
        "segment has cipher 'cipher_null-ecb', expected aes-xts-plain64",
    ),
    json(
        "null cipher in the keyslot",
        r#""encryption":"aes-xts-plain64","key_size""#,
        r#""encryption":"cipher_null-ecb","key_size""#,
        "keyslot area has cipher 'cipher_null-ecb', expected aes-xts-plain64",
    ),
    Attack {
        name: "extra keyslot",
        reason: "header has 2 keyslots, expected 1",
        change: Change::Twice { map: "keyslots" },
    },
    Attack {
        name: "two segments",
        reason: "header has 2 segments, expected 1",
        change: Change::Twice { map: "segments" },
    },
    json(
        "other sector size",
        r#""sector_size":4096"#,
        r#""sector_size":512"#,
        "segment has sectors of 512 bytes, expected 4096",
    ),
    json(
        "no integrity",
        r#","integrity":{"type":"hmac(sha256)","journal_encryption":"none","journal_integrity":"none"}"#,
        "",
        "segment has no integrity, expected hmac(sha256)",
    ),
    json(
        "data elsewhere",
        r#""offset":"16777216""#,
        r#""offset":"33554432""#,
        "segment starts at '33554432', expected 16777216",
    ),
    json(
        "unknown field",
        r#""config":{"#,
        r#""config":{"colour":"red","#,
        "unknown field `colour`",
    ),
    json(
        "re-encryption under way",
        r#""config":{"#,
        r#""config":{"requirements":{"mandatory":["online-reencrypt-v2"]},"#,
        "configuration has requirements 'online-reencrypt-v2', expected none",
    ),
    json(
        "four gibibytes for argon2id",
        r#""memory":1024"#,
        r#""memory":4194304"#,
        "argon2id takes 4194304 KiB of memory, expected 32 to 65536",
    ),
    json(
        "a billion passes of argon2id",
        r#""kdf":{"type":"argon2id","time":4"#,
        r#""kdf":{"type":"argon2id","time":1000000000"#,
        "argon2id takes 1000000000 passes, expected 1 to 256",
    ),
    json(
        "token of somebody else",
        r#""type":"constellation-state-disk""#,
        r#""type":"systemd-tpm2""#,
        "token has type 'systemd-tpm2', expected constellation-state-disk",
    ),
    Attack {
        name: "bad checksum",
        reason: "primary header has checksum",
        change: Change::Bytes(|bytes| bytes[110] ^= 1),
    },
    Attack {
        name: "truncated header",
        reason: "secondary header does not start with the LUKS2 magic",
        change: Change::Bytes(|bytes| bytes[COPY_SIZE..].fill(0)),
    },
    Attack {
        name: "copies of two disks",
        reason: "primary header belongs to disk",
        change: Change::Bytes(|bytes| {
            bytes[168] = if bytes[168] == b'a' { b'b' } else { b'a' };
            repair_checksums(bytes);
        }),
    },
    Attack {
        name: "header wiped, but not all of it",
        reason: "primary header does not start with the LUKS2 magic",
        change: Change::Bytes(|bytes| bytes[..COPY_SIZE].fill(0)),
    },
    Attack {
        name: "LUKS1",
        reason: "primary header has version 1, expected 2",
        change: Change::Bytes(|bytes| bytes[7] = 1),
    },
    Attack {
        name: "a partition table",
        reason: "primary header does not start with the LUKS2 magic",
        change: Change::Bytes(|bytes| {
            bytes.fill(0);
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        }),
    },
];

impl Attack {
    /// The good header after the attack.
    pub(crate) fn apply(&self, good: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = good.to_vec();
        match self.change {
            Change::Json { from, to } => replace_json(&mut bytes, from, to)?,
            Change::Twice { map } => {
                let (from, to) = twice(&json_text(good)?, map)?;
                replace_json(&mut bytes, &from, &to)?;
            }
            Change::Bytes(change) => change(&mut bytes),
        }
        ensure!(bytes != good, "the attack changed nothing");
        Ok(bytes)
    }
}

/// Replaces one text in the JSON area of both copies and repairs the checksums.
pub(crate) fn replace_json(bytes: &mut [u8], from: &str, to: &str) -> Result<()> {
    let text = json_text(bytes)?;
    ensure!(
        text.matches(from).count() == 1,
        "{from} is not in the JSON area once: {text}"
    );
    let text = text.replace(from, to);
    for copy in bytes.chunks_exact_mut(COPY_SIZE) {
        copy[BINARY_SIZE..].fill(0);
        copy[BINARY_SIZE..BINARY_SIZE + text.len()].copy_from_slice(text.as_bytes());
    }
    repair_checksums(bytes);
    Ok(())
}

fn json_text(bytes: &[u8]) -> Result<String> {
    let area = &bytes[BINARY_SIZE..COPY_SIZE];
    let end = area
        .iter()
        .position(|byte| *byte == 0)
        .context("JSON area is not terminated")?;
    Ok(String::from_utf8(area[..end].to_vec())?)
}

/// What to replace so that a map of the document has its entry twice.
fn twice(text: &str, map: &str) -> Result<(String, String)> {
    let start = text.find(&format!("\"{map}\":{{\"0\":")).context("no such map")?;
    let entry_start = start + map.len() + "\"\":{\"0\":".len();
    let mut depth = 0;
    let length = text[entry_start..].find(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == '}' && depth == 0
    });
    let entry = &text[entry_start..=entry_start + length.context("map has no end")?];
    let from = format!("\"{map}\":{{\"0\":{entry}");
    let to = format!("{from},\"1\":{entry}");
    Ok((from, to))
}
