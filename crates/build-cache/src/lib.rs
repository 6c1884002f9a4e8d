//! Results of expensive steps, kept outside of the checkout and found by a hash of everything that went into them.

mod key;

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::TempDir;

pub use key::Key;

/// How many results of one name are kept: builds of several checkouts can share a cache.
const KEPT: usize = 8;
const LOCK: &str = ".lock";

/// A folder of results.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A file or folder of the cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct CacheError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Cache {
    /// Creates the folder if there is none.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn open(root: &Path) -> Result<Self, CacheError> {
        Ok(Self { root: created(root)? })
    }

    /// A folder in the cache for what needs no key.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn folder(&self, name: &str) -> Result<PathBuf, CacheError> {
        created(&self.root.join(name))
    }

    /// A temporary folder on the file system of the cache.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn temporary(&self) -> Result<TempDir, CacheError> {
        let builder = tempfile::Builder::new().prefix("build-").tempdir_in(&self.root);
        builder.map_err(|source| error("create a folder in", &self.root, source))
    }

    /// The folder with the result for a key; `make` fills it if there is none yet.
    ///
    /// A result appears whole or not at all, so that a build can be interrupted at any point. Two builds that want the same
    /// result do not both make it: the second one waits. `make` must not ask for another result of the same kind.
    ///
    /// # Errors
    /// When `make` fails, or a file of the cache cannot be used.
    pub fn result<E: From<CacheError>>(
        &self,
        kind: &str,
        key: &Key,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let folder = self.folder(kind)?;
        let result = folder.join(key.folder_name());
        if result.is_dir() {
            used_now(&result)?;
            return Ok(result);
        }
        let _lock = lock(&folder.join(LOCK))?;
        if !result.is_dir() {
            let temporary = self.temporary()?;
            let made = created(&temporary.path().join("result"))?;
            make(&made)?;
            atomic_file::rename(&made, &result).map_err(|source| error("create", &result, source))?;
            used_now(&result)?;
            remove_old(&folder, key.name(), &result)?;
        }
        Ok(result)
    }
}

/// Where a user's programs keep what they can make again (XDG Base Directory Specification), unless the environment does
/// not say.
#[must_use]
pub fn user_cache() -> Option<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))
}

fn created(folder: &Path) -> Result<PathBuf, CacheError> {
    fs::create_dir_all(folder)
        .and_then(|()| fs::canonicalize(folder))
        .map_err(|source| error("create", folder, source))
}

fn lock(path: &Path) -> Result<File, CacheError> {
    let lock = || {
        let file = File::create(path)?;
        file.lock()?;
        Ok(file)
    };
    lock().map_err(|source| error("lock", path, source))
}

/// What is in daily use is not old, whatever time its content gave the folder.
fn used_now(result: &Path) -> Result<(), CacheError> {
    let touch = || File::open(result)?.set_modified(SystemTime::now());
    touch().map_err(|source| error("use", result, source))
}

/// Keeps the results of one name that were used last.
fn remove_old(folder: &Path, name: &str, newest: &Path) -> Result<(), CacheError> {
    let read = || {
        let mut results = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if Key::name_of(&entry.file_name()) == Some(name) && path != newest {
                results.push((entry.metadata()?.modified()?, path));
            }
        }
        io::Result::Ok(results)
    };
    let mut others = read().map_err(|source| error("read", folder, source))?;
    others.sort();
    let surplus = (others.len() + 1).saturating_sub(KEPT);
    for (_, old) in others.into_iter().take(surplus) {
        fs::remove_dir_all(&old).map_err(|source| error("remove", &old, source))?;
    }
    Ok(())
}

fn error(action: &'static str, path: &Path, source: io::Error) -> CacheError {
    CacheError {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        (folder, cache)
    }

    fn results(folder: &TempDir) -> usize {
        let entries = fs::read_dir(folder.path().join("kind")).unwrap();
        entries
            .filter(|entry| entry.as_ref().unwrap().file_name() != LOCK)
            .count()
    }

    fn make(_: &Path) -> Result<(), CacheError> {
        Ok(())
    }

    #[test]
    fn a_result_is_made_once() {
        let (_folder, cache) = cache();
        let write = |dir: &Path| {
            fs::write(dir.join("a"), "1").unwrap();
            Ok::<_, CacheError>(())
        };
        let first = cache.result("kind", &Key::new("x"), write).unwrap();
        let second = cache
            .result("kind", &Key::new("x"), |_| -> Result<(), CacheError> {
                panic!("made twice")
            })
            .unwrap();
        assert_eq!(first, second);
        assert!(first.join("a").is_file());
    }

    #[test]
    fn a_step_that_fails_leaves_nothing() {
        let (folder, cache) = cache();
        let failed = cache.result("kind", &Key::new("x"), |dir| {
            fs::write(dir.join("half"), "").unwrap();
            Err(error("make", dir, io::ErrorKind::Other.into()))
        });
        failed.unwrap_err();
        assert_eq!(results(&folder), 0);
    }

    #[test]
    fn old_results_of_one_name_are_removed() {
        let (folder, cache) = cache();
        cache.result("kind", &Key::new("x-y"), make).unwrap();
        for number in 0..2 * KEPT {
            cache
                .result("kind", &Key::new("x").text(&number.to_string()), make)
                .unwrap();
        }
        assert_eq!(results(&folder), KEPT + 1);
    }

    #[test]
    fn a_result_in_use_is_not_old() {
        let (_folder, cache) = cache();
        let key = || Key::new("x").text("in use");
        let used = cache.result("kind", &key(), make).unwrap();
        for number in 0..2 * KEPT {
            // Its content can give a folder any time.
            File::open(&used).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            cache.result("kind", &key(), make).unwrap();
            cache
                .result("kind", &Key::new("x").text(&number.to_string()), make)
                .unwrap();
        }
        assert!(used.is_dir());
    }
}
