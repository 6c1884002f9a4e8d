use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use digest::{Digest, Hasher};
use rustix::fs::OFlags;
use tokio::task::spawn_blocking;

use crate::DownloadError;

/// The downloaded part of a file, hashed while it is written.
pub(crate) struct Part {
    file: File,
    path: PathBuf,
    hasher: Hasher,
    len: u64,
    resumed: bool,
}

/// Where an unfinished download of this file is.
#[must_use]
pub fn part_of(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".part");
    target.with_file_name(name)
}

impl Part {
    /// Reads the existing part, which can take a second.
    pub(crate) async fn open(target: &Path) -> io::Result<Self> {
        let path = part_of(target);
        spawn_blocking(move || Self::open_blocking(path))
            .await
            .expect("reading does not panic")
    }

    fn open_blocking(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // Never through a link that someone put there.
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)?;
        let mut hasher = Hasher::new();
        let len = io::copy(&mut file, &mut hasher)?;
        Ok(Self {
            file,
            path,
            hasher,
            len,
            resumed: len > 0,
        })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Starts again from the beginning.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.hasher = Hasher::new();
        self.len = 0;
        self.resumed = false;
        Ok(())
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn remove(self) -> io::Result<()> {
        fs::remove_file(self.path)
    }

    /// Gives the file its name if it is the right one, and removes it otherwise.
    pub(crate) fn keep_as(self, target: &Path, expected: Digest) -> Result<(), DownloadError> {
        let (resumed, path) = (self.resumed, self.path);
        let actual = self.hasher.finish();
        if actual == expected {
            return Ok(atomic_file::rename(&path, target)?);
        }
        fs::remove_file(path)?;
        Err(DownloadError::Digest {
            actual,
            expected,
            resumed,
        })
    }
}
