use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;
use tar::{Archive, Entry, EntryType};

use crate::place::write_file;

/// The most an archive may hold. The CNI plugins have 100 MB in 20 files.
const MAX_ENTRIES: usize = 4096;
const MAX_CONTENT: u64 = 1 << 30;

/// Unpacking an archive was refused or stopped.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Not a gzipped tar file, or the disk failed.
    #[error("cannot read the archive or write its files")]
    Io(#[from] io::Error),
    /// A name that leads out of the folder.
    #[error("the archive's entry {0:?} leads out of its folder")]
    Escapes(PathBuf),
    /// Neither a file nor a folder. Links can make later entries lead elsewhere, and devices are never needed.
    #[error("the archive's entry {name:?} is of type {kind:?}, expected a file or a folder")]
    Kind {
        /// The entry's name.
        name: PathBuf,
        /// The entry's type.
        kind: EntryType,
    },
    /// Too many files.
    #[error("the archive has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// Too many bytes.
    #[error("the archive unpacks to more than {MAX_CONTENT} bytes")]
    TooLong,
}

/// Unpacks a gzipped tar file below a folder. The archive's modes, owners and times are ignored.
pub(crate) fn unpack(archive: &Path, folder: &Path) -> Result<(), UnpackError> {
    let mut archive = Archive::new(GzDecoder::new(File::open(archive)?));
    let mut budget = MAX_CONTENT;
    for (number, entry) in archive.entries()?.enumerate() {
        if number >= MAX_ENTRIES {
            return Err(UnpackError::TooMany);
        }
        let mut entry = entry?;
        budget = budget.checked_sub(entry.size()).ok_or(UnpackError::TooLong)?;
        unpack_entry(&mut entry, folder)?;
    }
    Ok(())
}

fn unpack_entry(entry: &mut Entry<'_, impl Read>, folder: &Path) -> Result<(), UnpackError> {
    let name = entry.path()?.into_owned();
    let target = folder.join(inside(&name)?);
    match entry.header().entry_type() {
        EntryType::Directory => Ok(std::fs::create_dir_all(target)?),
        EntryType::Regular | EntryType::Continuous => Ok(write_file(entry, &target)?),
        kind => Err(UnpackError::Kind { name, kind }),
    }
}

/// The name without `.` parts, if it stays below the folder that it is unpacked to.
fn inside(name: &Path) -> Result<PathBuf, UnpackError> {
    let mut path = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(UnpackError::Escapes(name.to_owned()));
            }
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tempfile::TempDir;

    use super::*;

    /// An archive with one entry of this name, which may be any bytes, as an attacker would write it.
    fn archive_with(name: &str, kind: EntryType, link: &str, content: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4777);
        header.set_size(content.len() as u64);
        header.set_cksum();
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        tar.append(&header, content).unwrap();
        tar.into_inner().unwrap().finish().unwrap()
    }

    fn check(name: &str, kind: EntryType, link: &str) -> (TempDir, Result<(), UnpackError>) {
        let folder = TempDir::new().unwrap();
        let archive = folder.path().join("archive.tgz");
        fs::write(&archive, archive_with(name, kind, link, b"")).unwrap();
        let result = unpack(&archive, &folder.path().join("inside"));
        (folder, result)
    }

    #[test]
    fn files_are_unpacked_without_the_archives_modes() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, result) = check("./bin/bridge", EntryType::Regular, "");
        result.unwrap();
        let mode = fs::metadata(folder.path().join("inside/bin/bridge"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o7777, 0o555);
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../evil", "/etc/evil", "a/../../evil"] {
            let (folder, result) = check(name, EntryType::Regular, "");
            assert!(matches!(result, Err(UnpackError::Escapes(_))), "{name}");
            assert!(!folder.path().join("evil").exists());
        }
    }

    #[test]
    fn links_and_devices_are_refused() {
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Fifo] {
            let (_, result) = check("link", kind, "/etc/shadow");
            assert!(matches!(result, Err(UnpackError::Kind { .. })), "{kind:?}");
        }
    }

    #[test]
    fn an_archive_that_claims_too_much_is_refused() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("bomb.tgz");
        let mut header = tar::Header::new_gnu();
        header.set_path("bomb").unwrap();
        header.set_size(MAX_CONTENT + 1);
        header.set_cksum();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        io::Write::write_all(&mut gzip, header.as_bytes()).unwrap();
        fs::write(&path, gzip.finish().unwrap()).unwrap();
        assert!(matches!(unpack(&path, folder.path()), Err(UnpackError::TooLong)));
    }

    #[test]
    fn an_archive_of_too_many_entries_is_refused() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("many.tgz");
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_size(0);
        for _ in 0..=MAX_ENTRIES {
            tar.append_data(&mut header, "folder", io::empty()).unwrap();
        }
        fs::write(&path, tar.into_inner().unwrap().finish().unwrap()).unwrap();
        let result = unpack(&path, &folder.path().join("inside"));
        assert!(matches!(result, Err(UnpackError::TooMany)));
    }

    #[test]
    fn garbage_is_refused() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("garbage.tgz");
        fs::write(&path, b"not gzip").unwrap();
        assert!(matches!(unpack(&path, folder.path()), Err(UnpackError::Io(_))));
    }
}
