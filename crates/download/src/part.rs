use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use digest::{Digest, Hasher};
use rustix::fs::OFlags;
use tokio::task::spawn_blocking;

use crate::DownloadError;
use crate::error::Context;

/// The downloaded part of a file, hashed while it is written.
pub(crate) struct Part {
    file: File,
    path: PathBuf,
    hasher: Hasher,
    len: u64,
    resumed: bool,
    /// Whether it is still at its path, and nobody else's.
    in_place: bool,
}

/// Where an unfinished download of this file is.
#[must_use]
pub fn part_of(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".part");
    target.with_file_name(name)
}

/// Nobody else writes to the file while it is open. The kernel releases it with the process.
fn open_locked(path: &Path) -> Result<File, DownloadError> {
    loop {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // Never through a link that someone put there.
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path);
        let file = opened.on("write", path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DownloadError::Busy(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(error).on("lock", path),
        }
        // Meanwhile, another download may have ended and given the file its name, or removed it.
        let locked = file.metadata().on("inspect", path)?;
        if fs::symlink_metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino())) {
            return Ok(file);
        }
    }
}

impl Part {
    /// Reads the existing part, which can take a second.
    pub(crate) async fn open(target: &Path) -> Result<Self, DownloadError> {
        let path = part_of(target);
        spawn_blocking(move || Self::open_blocking(path))
            .await
            .expect("reading does not panic")
    }

    fn open_blocking(path: PathBuf) -> Result<Self, DownloadError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).on("create", folder)?;
        }
        let mut file = open_locked(&path)?;
        let mut hasher = Hasher::new();
        let len = io::copy(&mut file, &mut hasher).on("read", &path)?;
        Ok(Self {
            file,
            path,
            hasher,
            len,
            resumed: len > 0,
            in_place: true,
        })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Starts again from the beginning.
    pub(crate) fn clear(&mut self) -> Result<(), DownloadError> {
        self.file.set_len(0).on("empty", &self.path)?;
        self.file.rewind().on("empty", &self.path)?;
        self.hasher = Hasher::new();
        self.len = 0;
        self.resumed = false;
        Ok(())
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file.write_all(bytes).on("write", &self.path)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn remove(mut self) -> Result<(), DownloadError> {
        self.in_place = false;
        fs::remove_file(&self.path).on("remove", &self.path)
    }

    /// Gives the file its name if it is the right one, and removes it otherwise.
    pub(crate) fn keep_as(mut self, target: &Path, expected: Digest) -> Result<(), DownloadError> {
        let actual = self.hasher.clone().finish();
        if actual == expected {
            self.in_place = false;
            // The file is open, and thereby locked, until it is away.
            return atomic_file::rename(&self.path, target).on("write", target);
        }
        let resumed = self.resumed;
        self.remove()?;
        Err(DownloadError::Digest {
            actual,
            expected,
            resumed,
        })
    }
}

impl Drop for Part {
    /// A download of which nothing came leaves nothing. The file is still locked here.
    fn drop(&mut self) {
        if self.in_place && self.len == 0 {
            // The next download opens it again, and can report that it fails.
            let _ = fs::remove_file(&self.path);
        }
    }
}
