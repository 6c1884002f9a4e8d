/// The root file system's hash and size, from the measured kernel command line.
///
/// The hash tree's parameters are here, because dm-verity's own superblock is on the disk, where the host can change it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) hash: [u8; 32],
    pub(crate) salt: [u8; 32],
    /// Number of blocks of 4096 bytes.
    pub(crate) blocks: u64,
}

/// A command line that does not name a root file system.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ParseRootError {
    #[error("option {0} is missing")]
    Missing(&'static str),
    #[error("option {0} is given twice")]
    Twice(&'static str),
    #[error("option {0} is not a SHA-256 digest in hex")]
    NotADigest(&'static str),
    #[error("option {0} is not a number of blocks")]
    NotANumber(&'static str),
}

impl Root {
    /// Parses the three options that the image builder writes.
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

/// The only value of an option. A second value is refused, because an addition to the command line must not replace ours.
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
    fn bad_input_to_each_option_gives_one_error_that_names_it() {
        use ParseRootError as No;
        let (hash, salt, blocks) = ("roothash", "constellation.root-salt", "constellation.root-blocks");
        let good = format!("roothash={HASH} constellation.root-salt={SALT} constellation.root-blocks=77");
        assert!(Root::parse(&good).is_ok());
        for (from, to, expected) in [
            (format!("roothash={HASH}"), String::new(), No::Missing(hash)),
            (
                format!("roothash={HASH}"),
                format!("x.roothash={HASH}"),
                No::Missing(hash),
            ),
            (HASH.into(), String::new(), No::NotADigest(hash)),
            (HASH.into(), "01".into(), No::NotADigest(hash)),
            (HASH.into(), format!("{HASH}01"), No::NotADigest(hash)),
            (HASH.into(), HASH.replace('1', "x"), No::NotADigest(hash)),
            (HASH.into(), format!("{HASH} roothash={SALT}"), No::Twice(hash)),
            (HASH.into(), format!("{HASH} roothash={HASH}"), No::Twice(hash)),
            (format!("{salt}={SALT}"), String::new(), No::Missing(salt)),
            (SALT.into(), "02".into(), No::NotADigest(salt)),
            (SALT.into(), format!("{SALT} {salt}={HASH}"), No::Twice(salt)),
            (format!("{blocks}=77"), String::new(), No::Missing(blocks)),
            (format!("{blocks}=77"), format!("{blocks}.x=77"), No::Missing(blocks)),
            ("77".into(), String::new(), No::NotANumber(blocks)),
            ("77".into(), "0".into(), No::NotANumber(blocks)),
            ("77".into(), "-1".into(), No::NotANumber(blocks)),
            ("77".into(), "18446744073709551616".into(), No::NotANumber(blocks)),
            ("77".into(), format!("77 {blocks}=78"), No::Twice(blocks)),
        ] {
            let bad = good.replace(&from, &to);
            assert_eq!(Root::parse(&bad), Err(expected), "{bad}");
        }
    }
}
