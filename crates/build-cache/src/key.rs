use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use digest::{Digest, Hasher};

/// Hashes the inputs of a result.
pub struct Key {
    name: String,
    hasher: Hasher,
}

impl Key {
    /// Starts a key; `name` makes the folder findable for people, and its results replace each other.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let key = Self {
            name: name.to_owned(),
            hasher: Hasher::new(),
        };
        key.text(name)
    }

    /// Adds a text.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// Adds the content of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn file(self, path: &Path) -> io::Result<Self> {
        Ok(self.text(&Digest::of_file(path)?.to_string()))
    }

    /// Adds names, kinds, contents and executable bits of everything in a folder.
    ///
    /// # Errors
    /// When something in it cannot be read.
    pub fn folder(mut self, folder: &Path) -> io::Result<Self> {
        let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        self = self.bytes(&(entries.len() as u64).to_le_bytes());
        for entry in entries {
            let (path, metadata) = (entry.path(), entry.metadata()?);
            self = self.bytes(entry.file_name().as_encoded_bytes());
            self = if metadata.is_symlink() {
                let target = fs::read_link(&path)?;
                self.text("link").bytes(target.as_os_str().as_encoded_bytes())
            } else if metadata.is_dir() {
                self.text("folder").folder(&path)?
            } else if metadata.permissions().mode() & 0o111 != 0 {
                self.text("program").file(&path)?
            } else {
                self.text("file").file(&path)?
            };
        }
        Ok(self)
    }

    /// Adds another key, whose result goes into this one.
    #[must_use]
    pub fn key(self, other: &Self) -> Self {
        self.text(&other.folder_name())
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The name, and as many digits as it takes to not meet by chance.
    pub(crate) fn folder_name(&self) -> String {
        let digits = self.hasher.clone().finish().to_string();
        format!("{}-{}", self.name, &digits[..16])
    }

    /// The name that is part of a folder's.
    pub(crate) fn name_of(folder: &OsStr) -> Option<&str> {
        Some(folder.to_str()?.rsplit_once('-')?.0)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        // The length keeps neighbouring inputs apart.
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn every_input_changes_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let key = |texts: &[&str]| {
            let key = texts.iter().fold(Key::new("x"), |key, text| key.text(text));
            key.folder(folder.path()).unwrap().folder_name()
        };
        let mut seen = vec![key(&["ab", "c"]), key(&["a", "bc"])];
        let file = folder.path().join("file");
        fs::write(&file, "1").unwrap();
        seen.push(key(&["ab", "c"]));
        fs::write(&file, "2").unwrap();
        seen.push(key(&["ab", "c"]));
        fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
        seen.push(key(&["ab", "c"]));
        fs::create_dir(folder.path().join("folder")).unwrap();
        seen.push(key(&["ab", "c"]));
        fs::rename(&file, folder.path().join("folder/file")).unwrap();
        seen.push(key(&["ab", "c"]));
        let different: std::collections::BTreeSet<_> = seen.iter().collect();
        assert_eq!(different.len(), seen.len(), "{seen:?}");
    }
}
