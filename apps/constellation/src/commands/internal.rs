//! What this program does for itself.

use std::path::PathBuf;

use anyhow::Result;
use infrastructure_qemu::{RunFolder, serve_metadata as serve};

/// Serves metadata until the process is ended.
pub(crate) async fn serve_metadata(folder: PathBuf) -> Result<()> {
    Ok(serve(RunFolder::new(folder)).await?)
}
