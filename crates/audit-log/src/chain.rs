use std::io::{self, BufRead};

use digest::Digest;
use serde::{Deserialize, Serialize};

/// What the first record of a log has in place of the hash of the one before.
const NOTHING: Digest = Digest::new([0; 32]);
/// Longer lines are refused, in bytes. A real one has about 500.
const MAX_LINE_LEN: u64 = 64 * 1024;

/// A line before it is written, and as it is read.
#[derive(Serialize, Deserialize)]
struct Line<T> {
    /// SHA-256 of the line before, without its end.
    previous: Digest,
    #[serde(flatten)]
    record: T,
}

/// Where a chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    last: Digest,
}

/// What was found in files of a log.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BrokenChain {
    /// Its number in the file, beginning with 1.
    pub line: u64,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("cannot be read")]
    Read(#[from] io::Error),
    /// No record of ours.
    #[error("is not a record")]
    NotARecord,
    /// Something before it was changed or removed.
    #[error("follows a record with hash {expected}, but the one before has {actual}")]
    Gap {
        /// What the line says.
        expected: Digest,
        /// What is there.
        actual: Digest,
    },
}

impl Chain {
    /// Of a log without records.
    pub(crate) const fn new() -> Self {
        Self { last: NOTHING }
    }

    /// The hash of the last record, to be kept elsewhere.
    #[must_use]
    pub const fn last(&self) -> &Digest {
        &self.last
    }

    /// The next line, with its end, and where the chain stands after it.
    pub(crate) fn line(self, record: &impl Serialize) -> serde_json::Result<(Vec<u8>, Self)> {
        let line = Line {
            previous: self.last,
            record,
        };
        let mut bytes = serde_json::to_vec(&line)?;
        let last = Digest::of(&bytes);
        bytes.push(b'\n');
        Ok((bytes, Self { last }))
    }

    /// After the last of these whole lines.
    pub(crate) fn after(self, lines: &[u8]) -> Self {
        let last = lines.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
        last.map_or(self, |line| Self { last: Digest::of(line) })
    }
}

/// Checks the lines of one file, and returns where the chain stands after it and how many records it has. Without a chain to continue,
/// the first line is taken as it is: earlier files may have been deleted.
///
/// # Errors
/// At the first line that is not a record, or does not follow the one before.
pub fn verify(mut file: impl BufRead, before: Option<Chain>) -> Result<(Chain, u64), BrokenChain> {
    let (mut chain, mut records, mut text) = (before, 0, Vec::new());
    loop {
        let broken = |problem| BrokenChain {
            line: records + 1,
            problem,
        };
        text.clear();
        let read = io::Read::take(&mut file, MAX_LINE_LEN).read_until(b'\n', &mut text);
        if read.map_err(|error| broken(error.into()))? == 0 {
            return Ok((chain.unwrap_or(Chain::new()), records));
        }
        let line = text.strip_suffix(b"\n").ok_or_else(|| broken(Problem::NotARecord))?;
        let Line::<serde_json::Map<String, serde_json::Value>> { previous, .. } =
            serde_json::from_slice(line).map_err(|_| broken(Problem::NotARecord))?;
        if let Some(Chain { last }) = chain
            && previous != last
        {
            return Err(broken(Problem::Gap {
                expected: previous,
                actual: last,
            }));
        }
        chain = Some(Chain { last: Digest::of(line) });
        records += 1;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(numbers: impl IntoIterator<Item = u32>) -> (Vec<Vec<u8>>, Chain) {
        let mut chain = Chain::new();
        let mut lines = Vec::new();
        for number in numbers {
            let (line, after) = chain.line(&json!({ "number": number })).unwrap();
            lines.push(line);
            chain = after;
        }
        (lines, chain)
    }

    fn check(lines: &[Vec<u8>], before: Option<Chain>) -> Result<(Chain, u64), BrokenChain> {
        verify(&lines.concat()[..], before)
    }

    #[test]
    fn a_whole_chain_is_accepted_and_can_be_continued() {
        let (lines, end) = lines(0..5);
        assert_eq!(check(&lines, None).unwrap(), (end, 5));
        assert_eq!(check(&lines, Some(Chain::new())).unwrap(), (end, 5));
        let (middle, _) = check(&lines[..2], None).unwrap();
        assert_eq!(check(&lines[2..], Some(middle)).unwrap(), (end, 3));
        assert_eq!(middle.after(&lines[2..].concat()), end);
        assert_eq!(check(&[], None).unwrap(), (Chain::new(), 0));
    }

    #[test]
    fn each_change_is_found_where_it_is() {
        let (good, _) = lines(0..5);
        let mut changed = good.clone();
        let text = String::from_utf8(changed[1].clone()).unwrap();
        changed[1] = text.replace("\"number\":1", "\"number\":7").into_bytes();
        let mut removed = good.clone();
        removed.remove(1);
        let mut swapped = good.clone();
        swapped.swap(1, 2);
        let mut inserted = good.clone();
        inserted.insert(2, good[0].clone());
        for (lines, at) in [(changed, 3), (removed, 2), (swapped, 2), (inserted, 3)] {
            let broken = check(&lines, None).unwrap_err();
            assert!(matches!(broken.problem, Problem::Gap { .. }), "{broken}");
            assert_eq!(broken.line, at, "{broken}");
        }
        // The first one of a log follows nothing.
        let broken = check(&good[1..], Some(Chain::new())).unwrap_err();
        assert_eq!(broken.line, 1);
    }

    #[test]
    fn what_is_no_record_is_found() {
        let (good, end) = lines(0..2);
        let (long, _) = end.line(&json!({ "text": "x".repeat(70_000) })).unwrap();
        for bad in [
            &b"\n"[..],
            b"{}\n",
            b"nonsense\n",
            &long,
            br#"{"previous":"00"}"#,
            &good[1][..20],
        ] {
            let broken = check(&[good[0].clone(), bad.to_vec()], None).unwrap_err();
            assert!(matches!(broken.problem, Problem::NotARecord), "{broken}");
            assert_eq!(broken.line, 2);
        }
    }
}
