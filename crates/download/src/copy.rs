use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use atomic_file::{Access, NewFile};
use digest::{Digest, HashingWriter};
use tokio::task::spawn_blocking;

use crate::DownloadError;
use crate::error::Context;

/// Copies a local file to `target` under the same conditions as [`Downloader::file`](crate::Downloader::file).
///
/// # Errors
/// When the file cannot be read, is longer than `max_len` bytes, or has another digest.
pub async fn copy(from: PathBuf, digest: Digest, max_len: u64, target: PathBuf) -> Result<(), DownloadError> {
    spawn_blocking(move || copy_blocking(&from, digest, max_len, &target))
        .await
        .expect("copying does not panic")
}

fn copy_blocking(from: &Path, expected: Digest, max_len: u64, target: &Path) -> Result<(), DownloadError> {
    let mut source = File::open(from).on("read", from)?.take(max_len.saturating_add(1));
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).on("create", folder)?;
    }
    let new = NewFile::create(target, Access::Everyone).on("write", target)?;
    let mut file = HashingWriter::new(new);
    io::copy(&mut source, &mut file).on("copy", from)?;
    let (file, actual, len) = file.finish();
    if len > max_len {
        return Err(DownloadError::TooLong(max_len));
    }
    if actual != expected {
        return Err(DownloadError::Digest {
            actual,
            expected,
            resumed: false,
        });
    }
    file.commit().on("write", target)
}
