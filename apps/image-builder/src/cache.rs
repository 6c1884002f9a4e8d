//! Where downloads and the results of expensive steps are kept, outside of the checkout.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use build_cache::{CacheError, Key};
use clap::Args;
use digest::Digest;
use tempfile::TempDir;

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
    downloads: build_cache::Cache,
    results: build_cache::Cache,
}

impl CacheArgs {
    pub(crate) fn open(&self) -> Result<Cache> {
        let folder = match &self.cache {
            Some(folder) => folder.clone(),
            None => build_cache::user_cache()
                .context("neither XDG_CACHE_HOME nor HOME is set; pass --cache DIR")?
                .join("constellation/image"),
        };
        Ok(Cache {
            downloads: build_cache::Cache::open(&folder)?,
            results: build_cache::Cache::open(self.results.as_ref().unwrap_or(&folder))?,
        })
    }
}

impl Cache {
    /// The folder for downloaded packages, which need no key because they are named by their own digest.
    pub(crate) fn packages(&self) -> Result<PathBuf, CacheError> {
        self.downloads.folder("packages")
    }

    /// A temporary folder on the file system of downloads.
    pub(crate) fn temporary_for_downloads(&self) -> Result<TempDir, CacheError> {
        self.downloads.temporary()
    }

    /// A temporary folder on the file system of results.
    pub(crate) fn temporary(&self) -> Result<TempDir, CacheError> {
        self.results.temporary()
    }

    /// The folder with the result of a step; `make` fills it if there is none yet.
    pub(crate) fn result(&self, step: &str, key: &Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        self.results.result(step, key, make)
    }
}

/// The digest of a file, with its name in the error.
pub(crate) fn digest_of_file(path: &Path) -> Result<Digest> {
    Digest::of_file(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn results_can_be_kept_apart_from_downloads() {
        let folder = tempfile::tempdir().unwrap();
        let open = |results: Option<PathBuf>| {
            let cache = Some(folder.path().to_owned());
            CacheArgs { cache, results }.open().unwrap()
        };
        let make = |dir: &Path| Ok(fs::write(dir.join("a"), "1")?);
        let (cache, apart) = (open(None), open(Some(folder.path().join("apart"))));
        let first = cache.result("step", &Key::new("x"), make).unwrap();
        assert_ne!(apart.result("step", &Key::new("x"), make).unwrap(), first);
        assert_eq!(apart.packages().unwrap(), cache.packages().unwrap());
    }
}
