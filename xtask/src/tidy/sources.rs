//! The Rust files of the tree, parsed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::punctuated::Punctuated;
use syn::{Attribute, Meta, Token};

/// Folders with Rust files.
const FOLDERS: [&str; 5] = ["apps", "crates", "tests", "fuzz", "xtask"];

/// Every Rust file, by its path from the root of the workspace.
pub(crate) struct Sources(BTreeMap<PathBuf, Source>);

struct Source {
    text: String,
    syntax: syn::File,
}

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
                    // Cargo leaves generated files there.
                    if entry.file_name() != "target" {
                        folders.push(path);
                    }
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let source = fs::read_to_string(entry.path())
                        .map_err(Into::into)
                        .and_then(Source::parse);
                    files.insert(
                        path.clone(),
                        source.with_context(|| format!("parsing {}", path.display()))?,
                    );
                }
            }
        }
        Ok(Self(files))
    }

    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let parsed = files
            .iter()
            .map(|(path, text)| (PathBuf::from(path), Source::parse((*text).to_owned()).unwrap()));
        Self(parsed.collect())
    }

    pub(crate) fn get(&self, path: &Path) -> Option<&syn::File> {
        self.0.get(path).map(|source| &source.syntax)
    }

    /// The file of that path, or all files below the folder of that path.
    pub(crate) fn below(&self, path: &Path) -> impl Iterator<Item = &syn::File> {
        let below = self.0.iter().filter(move |(file, _)| file.starts_with(path));
        below.map(|(_, source)| &source.syntax)
    }

    /// The path and the text of every file.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.0
            .iter()
            .map(|(path, source)| (path.as_path(), source.text.as_str()))
    }
}

impl Source {
    fn parse(text: String) -> Result<Self> {
        let syntax = syn::parse_file(&text)?;
        Ok(Self { text, syntax })
    }
}

/// Whether attributes say that something exists in tests only.
pub(crate) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let name = attribute
            .path()
            .segments
            .last()
            .map(|segment| segment.ident.to_string());
        match name.as_deref() {
            Some("test") => true,
            Some("cfg") => attribute.parse_args().is_ok_and(|meta| needs_test(&meta)),
            _ => false,
        }
    })
}

fn needs_test(meta: &Meta) -> bool {
    match meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) => list
            .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
            .is_ok_and(|parts| {
                let (all, any) = (list.path.is_ident("all"), list.path.is_ident("any"));
                all && parts.iter().any(needs_test) || any && parts.iter().all(needs_test)
            }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(attribute: &str) -> bool {
        let item: syn::Item = syn::parse_str(&format!("{attribute} fn f() {{}}")).unwrap();
        let syn::Item::Fn(function) = item else { panic!() };
        is_for_tests(&function.attrs)
    }

    #[test]
    fn code_for_tests_is_told_from_other_code() {
        assert!(check("#[cfg(test)]"));
        assert!(check("#[cfg(all(test, unix))]"));
        assert!(check("#[test]"));
        assert!(check("#[tokio::test]"));
        assert!(!check("#[cfg(not(test))]"));
        assert!(!check("#[cfg(any(test, unix))]"));
        assert!(!check("#[cfg(unix)]"));
        assert!(!check("#[must_use]"));
    }
}
