//! What a node wrote before it stopped. Its text is shown to a person, so control characters are removed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of the end of a console is read, in bytes.
const TAIL_LEN: u64 = 64 * 1024;
/// How much of a line is shown.
const MAX_LINE: usize = 400;

/// node-init's last words when another program has said why.
const SAID_BEFORE: &str = "boot failed: the state disk was not opened";

/// The last lines of a console, without empty ones.
pub(crate) fn tail(path: &Path, count: usize) -> Vec<String> {
    let lines = lines(&read_tail(path).unwrap_or_default());
    lines[lines.len().saturating_sub(count)..].to_vec()
}

/// Why a node stopped, according to its console: the last line with a reason, or else the last line.
pub(crate) fn reason(path: &Path) -> Option<String> {
    let mut lines = lines(&read_tail(path).ok()?);
    let says_why = |line: &String| {
        let markers = [
            "boot failed: ",
            "failed: ",
            "Kernel panic",
            "error: ",
            "\"level\":\"ERROR\"",
        ];
        markers.iter().any(|marker| line.contains(marker)) && !line.contains(SAID_BEFORE)
    };
    match lines.iter().rposition(says_why) {
        Some(index) => Some(lines.swap_remove(index)),
        None => lines.pop(),
    }
}

/// The last line that is not empty.
pub(crate) fn last_line(text: &[u8]) -> Option<String> {
    lines(text).pop()
}

fn read_tail(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_LEN)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_LEN).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn lines(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text)
        .split(['\n', '\r'])
        .map(clean)
        .filter(|line| !line.is_empty())
        .collect()
}

/// Drops escape sequences (ECMA-48 section 5.4: `ESC [`, parameters, one final byte) and other control characters.
fn clean(line: &str) -> String {
    let mut clean = String::new();
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => {
                if rest.next() == Some('[') {
                    rest.by_ref().find(|c| ('\x40'..='\x7e').contains(c));
                }
            }
            '\t' => clean.push(' '),
            c if c.is_control() => {}
            c => clean.push(c),
        }
    }
    clean.trim().chars().take(MAX_LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        std::fs::write(&path, text).unwrap();
        assert_eq!(reason(&path).as_deref(), expected, "{text:?}");
    }

    #[test]
    fn finds_the_reason() {
        check("", None);
        check("BdsDxe: starting Boot0001\r\n\r\n", Some("BdsDxe: starting Boot0001"));
        check(
            "starting\nconstellation: boot failed: state disk: wrong header\nconstellation: powering off\n",
            Some("constellation: boot failed: state disk: wrong header"),
        );
    }

    #[test]
    fn takes_control_characters_out() {
        assert_eq!(clean("\x1b[2J\x1b[01;31mred\x1b[0m\x07\tend\x1b"), "red end");
        assert!(clean(&"x".repeat(1000)).len() == MAX_LINE);
    }

    #[test]
    fn a_console_that_is_not_there_has_no_lines() {
        assert!(tail(Path::new("/nonexistent"), 5).is_empty());
    }
}
