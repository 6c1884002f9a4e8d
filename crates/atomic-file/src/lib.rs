//! Files that are replaced as a whole or not at all, whatever happens in between.
//!
//! Writers of one file must exclude each other; readers need nothing.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its owner (mode 0600).
    Owner,
    /// Everyone, as far as the umask allows (mode 0644).
    Everyone,
}

/// Replaces a file: temporary file, fsync, rename, fsync of the folder.
///
/// After a crash the file is the old or the new one. A temporary file may be left; the next call replaces it, and
/// [`remove`] removes it.
///
/// # Errors
/// When the folder cannot be written to.
pub fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let temporary = temporary(path)?;
    remove_if_there(&temporary)?;
    let mut file = OpenOptions::new()
        .write(true)
        // Never through a link that somebody put there.
        .create_new(true)
        .mode(access.mode())
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// Removes a file and what an interrupted [`replace`] may have left beside it. It is no error if there is none.
///
/// # Errors
/// When the folder cannot be written to.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_if_there(&temporary(path)?)?;
    remove_if_there(path)
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Everyone => 0o644,
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaces_and_keeps_secrets_to_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for content in [&b"old"[..], b"new"] {
            replace(&path, content, Access::Owner).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
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
