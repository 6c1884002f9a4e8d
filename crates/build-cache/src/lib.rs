//! Results of expensive steps, kept outside of the checkout and found by a hash of everything that went into them.

mod key;

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tempfile::TempDir;

pub use key::Key;

/// How many results of one name are kept: builds of several checkouts can share a cache.
const KEPT: usize = 8;
const LOCK: &str = ".lock";
/// What the name of a result that is being removed starts with. No key gives such a name.
const REMOVED: &str = ".removed-";

/// A folder of results. No process removes a result that a cache gave out, until that cache and its clones are dropped.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    /// The open folders of results, each with a shared lock. The kernel releases them with the process.
    in_use: Arc<Mutex<BTreeMap<PathBuf, File>>>,
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
        Ok(Self {
            root: created(root)?,
            in_use: Arc::default(),
        })
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
    /// A result appears and disappears whole, so that a build can be interrupted at any point. Two builds that want the same
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
        if self.hold(&result)? {
            return Ok(result);
        }
        let _lock = lock(&folder.join(LOCK))?;
        if !self.hold(&result)? {
            let temporary = self.temporary()?;
            let made = created(&temporary.path().join("result"))?;
            make(&made)?;
            atomic_file::rename(&made, &result).map_err(|source| error("create", &result, source))?;
            self.hold(&result)?;
            set_old_aside(&folder, key.name())?;
            remove_set_aside(&folder)?;
        }
        Ok(result)
    }

    /// Whether there is this result, which then stays.
    fn hold(&self, result: &Path) -> Result<bool, CacheError> {
        let Some(held) = held(result).map_err(|source| error("use", result, source))? else {
            return Ok(false);
        };
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.insert(result.to_owned(), held);
        Ok(true)
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

/// The open and locked folder of a result, if there is one. It counts as used now: what is in daily use is not old, whatever time
/// its content gave the folder.
fn held(result: &Path) -> io::Result<Option<File>> {
    let folder = match File::open(result) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        folder => folder?,
    };
    folder.lock_shared()?;
    // Before it was locked, another build may have set it aside.
    if !is_at(&folder, result)? {
        return Ok(None);
    }
    folder.set_modified(SystemTime::now())?;
    Ok(Some(folder))
}

/// Whether this path still leads to the open folder.
fn is_at(folder: &File, path: &Path) -> io::Result<bool> {
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match fs::symlink_metadata(path) {
        Ok(there) => Ok(id(there) == id(folder.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Renames the results of one name that were used least lately, and that nobody uses. From then on they are no results, however
/// far their removal gets.
fn set_old_aside(folder: &Path, name: &str) -> Result<(), CacheError> {
    // The names would be taken by what an interrupted removal left.
    remove_set_aside(folder)?;
    let results = results_by_age(folder, name).map_err(|source| error("read", folder, source))?;
    let surplus = results.len().saturating_sub(KEPT);
    for old in results.into_iter().take(surplus) {
        set_aside(folder, &old).map_err(|source| error("remove", &old, source))?;
    }
    Ok(())
}

/// The oldest one comes first.
fn results_by_age(folder: &Path, name: &str) -> io::Result<Vec<PathBuf>> {
    let mut results = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if Key::name_of(&entry.file_name()) == Some(name) {
            results.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    results.sort();
    Ok(results.into_iter().map(|(_, path)| path).collect())
}

fn set_aside(folder: &Path, result: &Path) -> io::Result<()> {
    let file = File::open(result)?;
    // Where it cannot be locked, it may be in use.
    if file.try_lock().is_ok() {
        let name = result.file_name().unwrap_or_default().display();
        fs::rename(result, folder.join(format!("{REMOVED}{name}")))?;
    }
    Ok(())
}

/// Removes what was set aside, also by a run that was killed before it could.
fn remove_set_aside(folder: &Path) -> Result<(), CacheError> {
    let entries = fs::read_dir(folder).map_err(|source| error("read", folder, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| error("read", folder, source))?;
        if entry.file_name().as_encoded_bytes().starts_with(REMOVED.as_bytes()) {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(|source| error("remove", &path, source))?;
        }
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

    /// Makes a result as one build does, which uses nothing afterwards.
    fn build(folder: &TempDir, key: &Key) -> PathBuf {
        Cache::open(folder.path()).unwrap().result("kind", key, make).unwrap()
    }

    fn numbered(number: usize) -> Key {
        Key::new("x").text(&number.to_string())
    }

    #[test]
    fn old_results_of_one_name_are_removed() {
        let (folder, _) = cache();
        build(&folder, &Key::new("x-y"));
        for number in 0..2 * KEPT {
            build(&folder, &numbered(number));
        }
        assert_eq!(results(&folder), KEPT + 1);
    }

    #[test]
    fn a_result_in_daily_use_is_not_old() {
        let (folder, _) = cache();
        let key = Key::new("x").text("in use");
        let used = build(&folder, &key);
        for number in 0..2 * KEPT {
            // Its content can give a folder any time.
            File::open(&used).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            build(&folder, &key);
            build(&folder, &numbered(number));
        }
        assert!(used.is_dir());
    }

    #[test]
    fn a_result_stays_while_a_build_uses_it() {
        let (folder, cache) = cache();
        let used = cache.result("kind", &numbered(0), make).unwrap();
        let found = Cache::open(folder.path()).unwrap();
        found.result("kind", &numbered(0), make).unwrap();
        drop(cache);
        for number in 1..=2 * KEPT {
            build(&folder, &numbered(number));
        }
        assert!(used.is_dir());
        drop(found);
        build(&folder, &numbered(2 * KEPT + 1));
        assert!(!used.exists());
    }

    /// A build that is killed while it removes old results leaves some of their files.
    #[test]
    fn a_removal_that_was_interrupted_leaves_no_half_result() {
        let (folder, cache) = cache();
        let write = |dir: &Path| {
            fs::write(dir.join("a"), "1").unwrap();
            fs::write(dir.join("b"), "2").unwrap();
            Ok::<_, CacheError>(())
        };
        let old = cache.result("kind", &numbered(0), write).unwrap();
        drop(cache);
        for number in 1..=KEPT {
            fs::create_dir(old.with_file_name(numbered(number).folder_name())).unwrap();
        }
        File::open(&old).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let kind = folder.path().join("kind");
        set_old_aside(&kind, "x").unwrap();
        let half = kind.join(format!("{REMOVED}{}", numbered(0).folder_name()));
        fs::remove_file(half.join("a")).unwrap();

        let cache = Cache::open(folder.path()).unwrap();
        let again = cache.result("kind", &numbered(0), write).unwrap();
        assert!(again.join("a").is_file() && again.join("b").is_file());
        assert!(!half.exists());
    }

    /// The build opened the result, and locked it only after another one had set it aside.
    #[test]
    fn a_result_that_was_set_aside_meanwhile_is_not_taken() {
        let (folder, _) = cache();
        let result = build(&folder, &numbered(0));
        let open = File::open(&result).unwrap();
        assert!(is_at(&open, &result).unwrap());
        set_aside(&folder.path().join("kind"), &result).unwrap();
        assert!(!is_at(&open, &result).unwrap());
        build(&folder, &numbered(0));
        assert!(!is_at(&open, &result).unwrap());
    }
}
