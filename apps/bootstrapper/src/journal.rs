//! The node's journal, for the only caller that may see it.

use std::time::Duration;

use programs::{Call, Programs, RunError};

/// The failure is at the end of the journal; no more than this is sent, in bytes and in lines.
const MAX_LEN: usize = 4 << 20;
const MAX_LINES: &str = "20000";
/// Far below the size limit of a message.
const CHUNK_LEN: usize = 32 * 1024;

/// The end of this boot's journal, in pieces.
pub(crate) async fn read_journal(programs: &dyn Programs) -> Result<Vec<Vec<u8>>, RunError> {
    let call = Call::new("journalctl")
        .args(["--no-pager", "--boot", "--lines", MAX_LINES])
        .keep(MAX_LEN)
        .within(Duration::from_secs(60));
    let journal = programs.run(&call).await?.stdout;
    Ok(journal.chunks(CHUNK_LEN).map(<[u8]>::to_vec).collect())
}
