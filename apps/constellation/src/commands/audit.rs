//! `audit verify`: whether files of a key service's audit log are as they were written.

use std::fs::File;
use std::io::BufReader;

use anyhow::{Context, Result, bail};
use audit_log::{Chain, verify};
use camino::Utf8PathBuf;

use crate::output::print;

/// Checks the files as one chain, the oldest first, and prints the hash of its last record.
pub(crate) fn check(files: &[Utf8PathBuf]) -> Result<()> {
    let (mut chain, mut records) = (None::<Chain>, 0);
    for file in files {
        let opened = File::open(file).with_context(|| format!("cannot read {file}"))?;
        let (after, found) = verify(BufReader::new(opened), chain).with_context(|| {
            format!("{file} was changed, or does not follow the file named before it: name the oldest file first, and copy it again if it was being written")
        })?;
        (chain, records) = (Some(after), records + found);
    }
    let last = chain.context("no file was named")?;
    if records == 0 {
        bail!("these files have no records: was the copy interrupted, or has no node joined yet?");
    }
    let text = format!("{records} records follow each other.\nLast hash:\t{}", last.last());
    Ok(print(&text)?)
}
