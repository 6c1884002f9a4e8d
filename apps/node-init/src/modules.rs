//! Loads kernel modules from a list that the image builder has put in order.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadModulesError {
    #[error("cannot read the module list {list}")]
    List { list: PathBuf, source: io::Error },
    #[error("cannot read module {module}")]
    Read { module: PathBuf, source: io::Error },
    #[error("the kernel refused to load module {module}")]
    Load { module: PathBuf, source: Errno },
}

/// Loads the modules that `list` names below `folder`, one path per line. Modules that are already loaded are skipped.
pub(crate) fn load(folder: &Path, list: &Path) -> Result<(), LoadModulesError> {
    let names = fs::read_to_string(list).map_err(|source| LoadModulesError::List {
        list: list.into(),
        source,
    })?;
    names.lines().try_for_each(|name| load_one(folder.join(name)))
}

fn load_one(module: PathBuf) -> Result<(), LoadModulesError> {
    let file = match File::open(&module) {
        Ok(file) => file,
        Err(source) => return Err(LoadModulesError::Read { module, source }),
    };
    match rustix::system::finit_module(&file, c"", 0) {
        // Not every processor supports every accelerated algorithm.
        Ok(()) | Err(Errno::EXIST | Errno::NODEV) => Ok(()),
        Err(source) => Err(LoadModulesError::Load { module, source }),
    }
}
