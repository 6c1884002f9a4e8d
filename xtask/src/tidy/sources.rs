//! The Rust files of the tree, parsed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Folders with Rust files.
const FOLDERS: [&str; 5] = ["apps", "crates", "tests", "fuzz", "xtask"];

/// Every Rust file, by its path from the root of the workspace.
pub(crate) struct Sources(BTreeMap<PathBuf, syn::File>);

impl Sources {
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders: Vec<_> = FOLDERS.map(PathBuf::from).into();
        while let Some(folder) = folders.pop() {
            let listed = fs::read_dir(root.join(&folder)).with_context(|| format!("reading {}", folder.display()))?;
            for entry in listed {
                let entry = entry?;
                let path = folder.join(entry.file_name());
                if entry.file_type()?.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let parsed = parse(&entry.path()).with_context(|| format!("parsing {}", path.display()))?;
                    files.insert(path, parsed);
                }
            }
        }
        Ok(Self(files))
    }

    /// The file of that path, or all files below the folder of that path.
    pub(crate) fn below(&self, path: &Path) -> impl Iterator<Item = &syn::File> {
        let below = self.0.iter().filter(move |(file, _)| file.starts_with(path));
        below.map(|(_, syntax)| syntax)
    }
}

fn parse(file: &Path) -> Result<syn::File> {
    Ok(syn::parse_file(&fs::read_to_string(file)?)?)
}
