//! The node's journal, for the one caller that may see it.

use std::time::Duration;

use programs::{Call, Programs, RunError};

/// The end of the journal is where the failure is, in bytes and lines.
const MAX_LEN: usize = 4 << 20;
const MAX_LINES: &str = "20000";
/// Fits into a message many times over.
const CHUNK_LEN: usize = 32 * 1024;

/// The end of this boot's journal in pieces.
pub(crate) async fn read_journal(programs: &dyn Programs) -> Result<Vec<Vec<u8>>, RunError> {
    let call = Call::new("journalctl")
        .args(["--no-pager", "--boot", "--lines", MAX_LINES])
        .keep(MAX_LEN)
        .within(Duration::from_secs(60));
    let journal = programs.run(&call).await?.stdout;
    Ok(journal.chunks(CHUNK_LEN).map(<[u8]>::to_vec).collect())
}
