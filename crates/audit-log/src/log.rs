use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::chain::Chain;

/// How much a log may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A file that would become longer is rotated, in bytes.
    pub file_len: u64,
    /// How many rotated files are kept beside the current one, as `<name>.1` (the newest), `<name>.2` and so on.
    pub kept: u32,
}

impl Default for Limits {
    /// 72 MiB altogether: about 150,000 records.
    fn default() -> Self {
        Self {
            file_len: 8 << 20,
            kept: 8,
        }
    }
}

/// The log that one program writes.
pub struct AuditLog {
    path: PathBuf,
    limits: Limits,
    current: Mutex<Current>,
}

struct Current {
    file: File,
    len: u64,
    chain: Chain,
}

impl AuditLog {
    /// Opens a log where it was left, or begins one. Half a record, which a crash left, is removed: nothing had happened for it yet.
    ///
    /// # Errors
    /// When the files cannot be read or written.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        let file = open(path)?;
        let (mut len, mut chain) = (0, Chain::new());
        // A device has no records to continue.
        if file.metadata()?.is_file() {
            let before = match fs::read(beside(path, 1)) {
                Ok(before) => before,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error),
            };
            let text = fs::read(path)?;
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            len = u64::try_from(whole).unwrap_or(u64::MAX);
            if whole != text.len() {
                file.set_len(len)?;
            }
            chain = chain.after(&before).after(&text[..whole]);
            sync_folder_of(path)?;
        }
        Ok(Self {
            path: path.to_owned(),
            limits,
            current: Mutex::new(Current { file, len, chain }),
        })
    }

    /// Returns when the record is on the disk. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// When it is not. Nothing of it remains in the log then, as far as that can be undone.
    pub fn write(&self, record: &impl Serialize) -> io::Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (line, chain) = current.chain.line(record)?;
        let more = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if current.len > 0 && current.len.saturating_add(more) > self.limits.file_len {
            self.rotate(&mut current)?;
        }
        let written = current.file.write_all(&line).and_then(|()| current.file.sync_data());
        if let Err(error) = written {
            // The next record must not follow half of this one on its line. If that fails too, the first error is the one to tell.
            let _ = current.file.set_len(current.len);
            return Err(error);
        }
        current.len += more;
        current.chain = chain;
        Ok(())
    }

    /// A crash at any point leaves files that follow each other. The new file is there before the old ones move: on a disk without room
    /// for it, every attempt would otherwise push one of them out.
    fn rotate(&self, current: &mut Current) -> io::Result<()> {
        let new = beside(&self.path, "new");
        let file = open(&new)?;
        for number in (1..self.limits.kept).rev() {
            rename_if_there(&beside(&self.path, number), &beside(&self.path, number + 1))?;
        }
        rename_if_there(&self.path, &beside(&self.path, 1))?;
        fs::rename(new, &self.path)?;
        current.file = file;
        current.len = 0;
        sync_folder_of(&self.path)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn beside(path: &Path, suffix: impl Display) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    name.into()
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::verify;

    const SMALL: Limits = Limits { file_len: 300, kept: 3 };

    fn open_in(folder: &TempDir) -> AuditLog {
        AuditLog::open(&folder.path().join("log"), SMALL).unwrap()
    }

    fn write(log: &AuditLog, number: u32) {
        log.write(&json!({ "number": number })).unwrap();
    }

    /// All files, oldest first, verified as one chain; and how many records they have.
    fn records(folder: &TempDir) -> u64 {
        let path = folder.path().join("log");
        let files = (1..=9).rev().map(|number| beside(&path, number)).chain([path.clone()]);
        let (mut chain, mut records) = (None, 0);
        for file in files.filter(|file| file.exists()) {
            let (after, found) = verify(BufReader::new(File::open(file).unwrap()), chain).unwrap();
            (chain, records) = (Some(after), records + found);
        }
        records
    }

    #[test]
    fn the_chain_goes_on_across_files_and_restarts() {
        let folder = TempDir::new().unwrap();
        for start in 0..3 {
            let log = open_in(&folder);
            for number in 0..2 {
                write(&log, 2 * start + number);
            }
        }
        assert_eq!(records(&folder), 6);
        assert!(folder.path().join("log.1").exists());
    }

    #[test]
    fn a_log_does_not_grow_for_ever() {
        let folder = TempDir::new().unwrap();
        let log = open_in(&folder);
        for number in 0..100 {
            write(&log, number);
            let files: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
            assert!(files.len() <= 4, "{files:?}");
        }
        let kept = records(&folder);
        assert!((4..=20).contains(&kept), "{kept}");
        for file in fs::read_dir(folder.path()).unwrap() {
            assert!(file.unwrap().metadata().unwrap().len() <= SMALL.file_len);
        }
    }

    /// The power went at any byte of the last record.
    #[test]
    fn half_a_record_is_removed() {
        for cut in 1..60 {
            let folder = TempDir::new().unwrap();
            let path = folder.path().join("log");
            let log = open_in(&folder);
            write(&log, 0);
            let whole = fs::metadata(&path).unwrap().len();
            write(&log, 1);
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(whole + cut)
                .unwrap();
            write(&open_in(&folder), 2);
            assert_eq!(records(&folder), 2, "{cut}");
        }
    }

    /// The process was killed after the rename, before the first record of the new file.
    #[test]
    fn an_empty_file_continues_the_one_before() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("log");
        write(&open_in(&folder), 0);
        fs::rename(&path, beside(&path, 1)).unwrap();
        write(&open_in(&folder), 1);
        assert_eq!(records(&folder), 2);
        fs::remove_file(&path).unwrap();
        write(&open_in(&folder), 2);
        assert_eq!(records(&folder), 2);
    }

    /// The disk has no room for another file.
    #[test]
    fn a_log_that_cannot_go_on_keeps_what_it_has() {
        let folder = TempDir::new().unwrap();
        let log = open_in(&folder);
        let mut written = 0;
        while !folder.path().join("log.2").exists() {
            write(&log, 0);
            written += 1;
        }
        let obstacle = folder.path().join("log.new");
        fs::create_dir(&obstacle).unwrap();
        while log.write(&json!({ "number": 0 })).is_ok() {
            written += 1;
        }
        for _ in 0..5 {
            log.write(&json!({ "number": 0 })).unwrap_err();
        }
        assert_eq!(records(&folder), written);
        fs::remove_dir(&obstacle).unwrap();
        write(&log, 0);
        assert!(folder.path().join("log.3").exists());
        assert_eq!(records(&folder), written + 1);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let log = AuditLog::open(Path::new("/dev/full"), Limits::default()).unwrap();
        assert!(log.write(&json!({})).is_err());
    }
}
