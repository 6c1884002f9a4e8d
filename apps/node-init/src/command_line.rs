/// Where the root file system is and what it must be, from the measured kernel command line.
///
/// The parameters of the hash tree are here because dm-verity's own header is on the disk, where the host can change it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) hash: [u8; 32],
    pub(crate) salt: [u8; 32],
    /// Blocks of 4096 bytes.
    pub(crate) blocks: u64,
}

/// A command line from which no root file system can be opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ParseRootError {
    #[error("option {0} is missing")]
    Missing(&'static str),
    #[error("option {0} is given twice")]
    Twice(&'static str),
    #[error("option {0} is not a SHA-256 value in hex")]
    NotADigest(&'static str),
    #[error("option {0} is not a number of blocks")]
    NotANumber(&'static str),
}

impl Root {
    /// Reads the three options the image builder writes.
    pub(crate) fn parse(command_line: &str) -> Result<Self, ParseRootError> {
        Ok(Self {
            hash: digest(command_line, "roothash")?,
            salt: digest(command_line, "constellation.root-salt")?,
            blocks: blocks(command_line, "constellation.root-blocks")?,
        })
    }
}

fn digest(command_line: &str, option: &'static str) -> Result<[u8; 32], ParseRootError> {
    let mut digest = [0; 32];
    hex::decode_to_slice(value(command_line, option)?, &mut digest).map_err(|_| ParseRootError::NotADigest(option))?;
    Ok(digest)
}

fn blocks(command_line: &str, option: &'static str) -> Result<u64, ParseRootError> {
    match value(command_line, option)?.parse() {
        Ok(0) | Err(_) => Err(ParseRootError::NotANumber(option)),
        Ok(blocks) => Ok(blocks),
    }
}

/// The one value of an option. Two values are refused: an addition to the command line must not replace what we wrote.
fn value<'line>(command_line: &'line str, option: &'static str) -> Result<&'line str, ParseRootError> {
    let mut values = command_line
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix(option)?.strip_prefix('='));
    let value = values.next().ok_or(ParseRootError::Missing(option))?;
    match values.next() {
        Some(_) => Err(ParseRootError::Twice(option)),
        None => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0101010101010101010101010101010101010101010101010101010101010101";
    const SALT: &str = "0202020202020202020202020202020202020202020202020202020202020202";

    fn check(hash: &str, rest: &str) -> Result<Root, ParseRootError> {
        Root::parse(&format!(
            "console=ttyS0 roothash={hash} constellation.root-salt={SALT} {rest}\n"
        ))
    }

    #[test]
    fn root_is_read_from_the_three_options() {
        let root = Root {
            hash: [1; 32],
            salt: [2; 32],
            blocks: 77,
        };
        assert_eq!(check(HASH, "constellation.root-blocks=77"), Ok(root));
    }

    #[test]
    fn second_root_hash_is_refused() {
        let rest = format!("constellation.root-blocks=77 roothash={SALT}");
        assert_eq!(check(HASH, &rest), Err(ParseRootError::Twice("roothash")));
    }

    #[test]
    fn missing_block_count_is_refused() {
        let missing = ParseRootError::Missing("constellation.root-blocks");
        assert_eq!(check(HASH, "constellation.root-blocks.x=1"), Err(missing));
    }

    #[test]
    fn zero_blocks_are_refused() {
        let zero = ParseRootError::NotANumber("constellation.root-blocks");
        assert_eq!(check(HASH, "constellation.root-blocks=0"), Err(zero));
    }

    #[test]
    fn short_root_hash_is_refused() {
        let short = ParseRootError::NotADigest("roothash");
        assert_eq!(check("01", "constellation.root-blocks=1"), Err(short));
    }
}
