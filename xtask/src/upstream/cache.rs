//! Results of earlier runs, found by the hash of what they were made from.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use digest::Hasher;

use crate::folders;

/// The folder that keeps results.
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache at `root` or at the user's usual place.
    pub(super) fn open(root: Option<PathBuf>) -> Result<Self> {
        let root = match root {
            Some(root) => root,
            None => user_cache()?.join("constellation/kubernetes"),
        };
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        Ok(Self {
            root: root.canonicalize()?,
        })
    }

    /// The folder for `key`. If it is not there, `fill` fills a temporary one, which then gets the name: what is in the
    /// cache is always complete.
    pub(super) fn folder(&self, kind: &str, key: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let target = self.root.join(kind).join(key);
        if target.is_dir() {
            return Ok(target);
        }
        let kind = self.root.join(kind);
        fs::create_dir_all(&kind)?;
        // Two runs at once would build the same things side by side; the second one waits and finds them.
        let lock = fs::File::create(kind.join(".lock"))?;
        lock.lock().context("locking the cache")?;
        if !target.is_dir() {
            let temporary = kind.join(".making");
            folders::remove(&temporary).context("removing what an interrupted run left")?;
            fs::create_dir(&temporary)?;
            fill(&temporary)?;
            fs::rename(&temporary, &target).context("moving the result into the cache")?;
        }
        Ok(target)
    }
}

/// Hashes the inputs of a result.
pub(super) struct Key {
    name: String,
    hasher: Hasher,
}

impl Key {
    /// Starts a key; `name` makes the folder findable for people.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            hasher: Hasher::new(),
        }
        .with(LAYOUT)
    }

    /// Adds a text.
    pub(super) fn add(&mut self, text: &str) -> &mut Self {
        self.add_bytes(text.as_bytes())
    }

    /// Adds names and contents of all files in a folder.
    pub(super) fn add_folder(&mut self, folder: &Path) -> Result<&mut Self> {
        let mut entries: Vec<_> = fs::read_dir(folder)
            .and_then(Iterator::collect)
            .with_context(|| format!("reading {}", folder.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.add_bytes(entry.file_name().as_encoded_bytes());
            if entry.file_type()?.is_dir() {
                self.add_folder(&entry.path())?;
            } else {
                self.add_bytes(&fs::read(entry.path())?);
            }
        }
        Ok(self)
    }

    /// The name and the first 16 digits of the hash.
    pub(super) fn finish(self) -> String {
        let digest = self.hasher.finish().to_string();
        format!("{}-{}", self.name, &digest[..16])
    }

    fn add_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        // The length keeps neighbouring inputs apart.
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
        self
    }

    fn with(mut self, text: &str) -> Self {
        self.add(text);
        self
    }
}

fn user_cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set; pass --cache DIR")
}

/// To be changed when other code than that of the keys makes other results from the same inputs.
const LAYOUT: &str = "constellation xtask kubernetes 1";

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn keeps_complete_results_only() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(root.path().to_owned())).unwrap();
        let failed = cache.folder("programs", "a", |folder| {
            fs::write(folder.join("half"), "")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert!(!root.path().join("programs/a").exists());

        let made = cache
            .folder("programs", "a", |folder| Ok(fs::write(folder.join("whole"), "")?))
            .unwrap();
        let found = cache.folder("programs", "a", |_| bail!("made twice")).unwrap();
        assert_eq!(made, found);
        assert!(found.join("whole").is_file() && !found.join("half").exists());
    }

    #[test]
    fn every_input_changes_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let key = |texts: &[&str]| {
            let mut key = Key::new("x");
            for text in texts {
                key.add(text);
            }
            key.add_folder(folder.path()).unwrap();
            key.finish()
        };
        let first = key(&["ab", "c"]);
        assert_ne!(first, key(&["a", "bc"]));
        fs::write(folder.path().join("go.sum"), "1").unwrap();
        let second = key(&["ab", "c"]);
        fs::write(folder.path().join("go.sum"), "2").unwrap();
        assert!(first != second && second != key(&["ab", "c"]));
    }
}
