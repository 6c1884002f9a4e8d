//! Where the machines are in a workspace.

use std::path::{Path, PathBuf};

/// The name of a run folder.
pub(crate) const RUN_FOLDER: &str = "constellation-qemu";

/// The workspace that a path is in, for an operator; outside of any, the path.
pub(crate) fn workspace_of(path: &Path) -> PathBuf {
    let run_folder = path.ancestors().find(|folder| folder.ends_with(RUN_FOLDER));
    run_folder.and_then(Path::parent).unwrap_or(path).to_owned()
}
