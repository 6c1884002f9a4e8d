//! Replaces files as a whole or not at all, even if the process or the machine stops in between.
//!
//! Writers of one file must exclude each other; readers need nothing. [`read`] is for files that somebody else may have replaced.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its owner (mode 0600).
    Owner,
    /// Everyone, as far as the umask allows (mode 0644).
    Everyone,
    /// Exactly this mode, whatever the umask is.
    Mode(u32),
    /// Exactly this mode, and the file belongs to this user and the group of the same number. Only root can give a file away.
    User {
        /// The number of user and group.
        id: u32,
        /// The permission bits, without those of the file type.
        mode: u32,
    },
}

/// The next content of a file. It takes the file's place by [`commit`](Self::commit); dropped before that, it leaves the
/// file as it was and nothing beside it.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

/// Replaces a file: temporary file, fsync, rename, fsync of the folder.
///
/// After a crash, the file is either the old or the new one. A temporary file may be left over; the next call replaces it,
/// and [`remove`] removes it.
///
/// # Errors
/// When the folder cannot be written to.
pub fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut file = NewFile::create(path, access)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Reads a regular file of at most `limit` bytes. No link in its place is followed, and a pipe does not make the caller wait: whoever wrote the
/// folder may be somebody else.
///
/// # Errors
/// When there is something else or something longer, or it cannot be read.
pub fn read(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Renames a file or folder whose content is complete. A file replaces another one; both are in one file system.
///
/// # Errors
/// When the rename is not possible.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    fs::rename(from, to)?;
    sync_folder(to)
}

/// Removes a file, and what an interrupted [`replace`] may have left beside it. A missing file is not an error.
///
/// # Errors
/// When the folder cannot be written to.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_if_there(&temporary(path)?)?;
    remove_if_there(path)
}

impl NewFile {
    /// An empty file beside `target`, with its final access from the first moment on.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn create(target: &Path, access: Access) -> io::Result<Self> {
        let temporary = temporary(target)?;
        remove_if_there(&temporary)?;
        let file = OpenOptions::new()
            .write(true)
            // Never through a link that someone put there.
            .create_new(true)
            .mode(access.mode())
            .open(&temporary)?;
        let new = Self {
            file,
            temporary,
            target: target.to_owned(),
            committed: false,
        };
        access.set(&new.file)?;
        Ok(new)
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// When it cannot be stored, or the folder cannot be written to.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.committed = true;
        sync_folder(&self.target)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.committed {
            // The next attempt tries again, and can report that it fails.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Access {
    /// What the file is created with.
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Everyone => 0o644,
            // It must not be readable before it has its owner.
            Self::User { mode, .. } => mode & 0o700,
            Self::Mode(mode) => mode,
        }
    }

    /// What the umask or the owner still lacks.
    fn set(self, file: &File) -> io::Result<()> {
        match self {
            Self::Owner | Self::Everyone => Ok(()),
            Self::Mode(mode) => file.set_permissions(Permissions::from_mode(mode)),
            Self::User { id, mode } => {
                fchown(file, Some(id), Some(id))?;
                // After the owner, because a change of owner takes set-uid bits away.
                file.set_permissions(Permissions::from_mode(mode))
            }
        }
    }
}

/// Always the same name, so that nothing accumulates.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    Ok(path.with_file_name(hidden))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = File::open(parent.unwrap_or(Path::new(".")))?;
    Ok(rustix::fs::fsync(&folder)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// A pipe that nobody writes to would make the reader wait for ever.
    #[test]
    fn reads_nothing_but_a_regular_file_of_a_bounded_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), b"four").unwrap();
        assert_eq!(read(&path("file"), 4).unwrap(), b"four");
        assert_eq!(read(&path("file"), 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), Mode::RUSR).unwrap();
        for other in ["link", "pipe", "."] {
            assert!(read(&path(other), 4).is_err(), "{other}");
        }
        assert_eq!(read(&path("none"), 4).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn replaces_and_keeps_secrets_to_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for content in [&b"old"[..], b"new"] {
            replace(&path, content, Access::Owner).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_mode_that_must_be_exact_is_exact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for exact in [0o666, 0o400, 0o555] {
            replace(&path, b"content", Access::Mode(exact)).unwrap();
            assert_eq!(mode(&path), exact);
        }
    }

    #[test]
    fn a_file_is_given_to_its_user() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        // To oneself is the only gift that needs no privilege, and root can make any.
        let me = fs::metadata(folder.path()).unwrap().uid();
        let id = if me == 0 { 4711 } else { me };
        replace(&path, b"content", Access::User { id, mode: 0o400 }).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), mode(&path)), (id, 0o400));
    }

    #[test]
    fn a_new_file_that_is_given_up_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&path, b"old", Access::Everyone).unwrap();
        let mut new = NewFile::create(&path, Access::Everyone).unwrap();
        new.write_all(b"half").unwrap();
        drop(new);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_and_folders_are_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        rename(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        fs::create_dir(&from).unwrap();
        rename(&from, &folder.path().join("folder")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn survives_what_a_crash_left_and_does_not_follow_links() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("file"), folder.path().join("victim"));
        fs::write(&victim, "untouched").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join(".file.new")).unwrap();
        replace(&path, b"content", Access::Owner).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(&path).unwrap(), "content");
    }

    #[test]
    fn removes_what_an_interrupted_replacement_left() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".file.new"), "half").unwrap();
        remove(&folder.path().join("file")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
