//! Results of expensive steps, kept outside the checkout and found by a hash of everything that went into them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use digest::{Digest, Hasher};

/// How many results of one step are kept. Builds of several checkouts can share a cache.
const KEPT: usize = 4;

/// Where results are kept.
#[derive(Args)]
pub(crate) struct CacheArgs {
    /// Folder for downloads and intermediate results [default: constellation/image in the user's cache folder]
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Folder for intermediate results, so that only downloads are taken from the cache [default: that of --cache]
    #[arg(long)]
    results: Option<PathBuf>,
}

/// A folder of downloads and one of results.
pub(crate) struct Cache {
    downloads: PathBuf,
    results: PathBuf,
}

/// Names a result by what it was made from.
pub(crate) struct Key(Hasher);

impl CacheArgs {
    pub(crate) fn open(&self) -> Result<Cache> {
        let folder = match &self.cache {
            Some(folder) => folder.clone(),
            None => user_cache()?.join("constellation/image"),
        };
        let results = self.results.as_ref().unwrap_or(&folder);
        Ok(Cache {
            downloads: created(&folder)?,
            results: created(results)?,
        })
    }
}

fn created(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(fs::canonicalize(folder)?)
}

fn user_cache() -> Result<PathBuf> {
    let folder = |variable| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    folder("XDG_CACHE_HOME")
        .or_else(|| Some(folder("HOME")?.join(".cache")))
        .ok_or_else(|| anyhow!("neither XDG_CACHE_HOME nor HOME is set; pass --cache DIR"))
}

impl Cache {
    /// The folder for downloaded packages, which need no key because they are named by their own digest.
    pub(crate) fn packages(&self) -> Result<PathBuf> {
        created(&self.downloads.join("packages"))
    }

    /// A temporary folder on the file system of downloads.
    pub(crate) fn temporary_for_downloads(&self) -> Result<tempfile::TempDir> {
        temporary_in(&self.downloads)
    }

    /// A temporary folder on the file system of results.
    pub(crate) fn temporary(&self) -> Result<tempfile::TempDir> {
        temporary_in(&self.results)
    }

    /// The folder with the result of a step; `make` fills it if there is none yet.
    ///
    /// A result appears whole or not at all, so that a build can be interrupted at any point.
    pub(crate) fn result(&self, step: &str, key: Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let folder = created(&self.results.join(step))?;
        let result = folder.join(key.finish().to_string());
        if result.is_dir() {
            return Ok(result);
        }
        let temporary = self.temporary()?;
        let made = temporary.path().join("result");
        fs::create_dir(&made)?;
        make(&made)?;
        match fs::rename(&made, &result) {
            Ok(()) => {}
            // Another build was faster, and its result is the same.
            Err(_) if result.is_dir() => {}
            Err(error) => return Err(error).with_context(|| format!("cannot create {}", result.display())),
        }
        remove_old(&folder, &result)?;
        Ok(result)
    }
}

fn temporary_in(folder: &Path) -> Result<tempfile::TempDir> {
    let builder = tempfile::Builder::new().prefix("build-").tempdir_in(folder);
    builder.context("cannot create a temporary folder in the cache")
}

fn remove_old(folder: &Path, newest: &Path) -> Result<()> {
    let mut results = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        results.push((entry.metadata()?.modified()?, entry.path()));
    }
    results.sort();
    let surplus = results.len().saturating_sub(KEPT);
    for (_, old) in results.iter().take(surplus).filter(|(_, path)| path != newest) {
        fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok(())
}

impl Key {
    /// Starts with what makes the result, and the version of the code that makes it.
    pub(crate) fn new(step: &str) -> Self {
        Self(Hasher::new()).text(step)
    }

    pub(crate) fn text(mut self, text: &str) -> Self {
        self.field(text.as_bytes());
        self
    }

    pub(crate) fn digest(self, digest: &Digest) -> Self {
        self.text(&digest.to_string())
    }

    pub(crate) fn file(self, path: &Path) -> Result<Self> {
        Ok(self.digest(&digest_of_file(path)?))
    }

    /// Names, kinds, contents and executable bits of everything in a folder.
    pub(crate) fn folder(mut self, folder: &Path) -> Result<Self> {
        let mut entries = crate::tree::walk(folder)?;
        entries.sort();
        for entry in entries {
            let path = folder.join(&entry);
            let metadata = fs::symlink_metadata(&path)?;
            self.field(entry.as_bytes());
            if metadata.is_symlink() {
                let target = fs::read_link(&path)?;
                self = self.text("link").text(&target.to_string_lossy());
            } else if metadata.is_file() {
                let kind = if crate::tree::is_executable(&metadata) {
                    "program"
                } else {
                    "file"
                };
                self = self.text(kind).file(&path)?;
            } else {
                self = self.text("folder");
            }
        }
        Ok(self)
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(self) -> Digest {
        self.0.finish()
    }
}

/// The digest of a file, with its name in the error.
pub(crate) fn digest_of_file(path: &Path) -> Result<Digest> {
    Digest::of_file(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheArgs {
            cache: Some(folder.path().to_owned()),
            results: None,
        };
        let cache = cache.open().unwrap();
        (folder, cache)
    }

    #[test]
    fn result_is_made_once() {
        let (_folder, cache) = cache();
        let make = |dir: &Path| Ok(fs::write(dir.join("a"), "1")?);
        let first = cache.result("step", Key::new("x"), make).unwrap();
        let second = cache.result("step", Key::new("x"), |_| panic!("made twice")).unwrap();
        assert_eq!(first, second);
    }

    #[test]
    fn results_can_be_kept_apart_from_downloads() {
        let (folder, cache) = cache();
        let make = |dir: &Path| Ok(fs::write(dir.join("a"), "1")?);
        let first = cache.result("step", Key::new("x"), make).unwrap();
        let apart = CacheArgs {
            cache: Some(folder.path().to_owned()),
            results: Some(folder.path().join("apart")),
        };
        let apart = apart.open().unwrap();
        assert_ne!(apart.result("step", Key::new("x"), make).unwrap(), first);
        assert_eq!(apart.packages().unwrap(), cache.packages().unwrap());
    }

    #[test]
    fn failed_step_leaves_nothing() {
        let (folder, cache) = cache();
        let failed = cache.result("step", Key::new("x"), |dir| {
            fs::write(dir.join("a"), "1")?;
            Err(anyhow!("no"))
        });
        failed.unwrap_err();
        assert_eq!(fs::read_dir(folder.path().join("step")).unwrap().count(), 0);
    }

    #[test]
    fn old_results_are_removed() {
        let (folder, cache) = cache();
        for key in 0..10 {
            cache.result("step", Key::new(&key.to_string()), |_| Ok(())).unwrap();
        }
        assert_eq!(fs::read_dir(folder.path().join("step")).unwrap().count(), KEPT);
    }

    #[test]
    fn fields_of_a_key_cannot_run_together() {
        let a = Key::new("x").text("ab").text("c").finish();
        let b = Key::new("x").text("a").text("bc").finish();
        assert_ne!(a, b);
    }
}
