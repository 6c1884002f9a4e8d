//! `cargo xtask tidy`: rules about the tree that no compiler knows.
//!
//! 1. Dependencies point one way: no program depends on a program, no library on a program.
//! 2. Test crates (`test-*`, and what is in `tests/`) are linked by tests and by other test crates only, so no release can contain them.
//! 3. Every folder `testdata` says in a README where its files came from.
//! 4. Files that the documents name exist.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// Folders with documents, whose code spans name files.
const DOCUMENTS: [&str; 4] = ["", "docs", "docs/adr", "docs/walkthrough"];
/// A code span that begins with one of these is a path of the repository.
const FOLDERS: [&str; 9] = [
    "apps/",
    "crates/",
    "docs/",
    "images/",
    "scripts/",
    "tests/",
    "upstream/",
    "fuzz/",
    "xtask/",
];

/// Checks everything and lists all that is wrong.
pub(crate) fn run() -> Result<()> {
    let metadata = MetadataCommand::new().exec().context("running cargo metadata")?;
    let root = metadata.workspace_root.as_std_path().to_owned();
    let mut problems = Vec::new();
    check_dependencies(&metadata, &mut problems);
    check_testdata(&metadata, &mut problems);
    check_documents(&root, &mut problems)?;
    if problems.is_empty() {
        Ok(())
    } else {
        bail!("tidy found:\n  {}", problems.join("\n  "))
    }
}

fn check_dependencies(metadata: &Metadata, problems: &mut Vec<String>) {
    let packages = metadata.workspace_packages();
    let is_in = |name: &str, wanted: &str| {
        packages
            .iter()
            .any(|package| package.name == name && folder(package) == wanted)
    };
    let is_for_tests = |name: &str| name.starts_with("test-") || is_in(name, "tests");
    for package in &packages {
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if is_in(name, "apps") {
                problems.push(format!("{} depends on the program {name}", package.name));
            }
            let linked = dependency.kind != DependencyKind::Development;
            if linked && is_for_tests(name) && !is_for_tests(&package.name) {
                problems.push(format!("{} links the test crate {name}", package.name));
            }
        }
    }
}

/// `apps`, `crates` or `tests`.
fn folder(package: &Package) -> &str {
    package
        .manifest_path
        .parent()
        .and_then(|path| path.parent())
        .and_then(|path| path.file_name())
        .unwrap_or_default()
}

fn check_testdata(metadata: &Metadata, problems: &mut Vec<String>) {
    for package in metadata.workspace_packages() {
        let testdata = package.manifest_path.with_file_name("testdata");
        if testdata.exists() && !testdata.join("README.md").exists() {
            problems.push(format!("{testdata} does not say where it came from"));
        }
    }
}

fn check_documents(root: &Path, problems: &mut Vec<String>) -> Result<()> {
    for folder in DOCUMENTS {
        for entry in fs::read_dir(root.join(folder)).with_context(|| format!("reading {folder}"))? {
            let document = entry?.path();
            if document.extension().is_some_and(|extension| extension == "md") {
                check_document(root, &document, problems)?;
            }
        }
    }
    Ok(())
}

fn check_document(root: &Path, document: &Path, problems: &mut Vec<String>) -> Result<()> {
    let title = document.display();
    let text = fs::read_to_string(document).with_context(|| format!("reading {title}"))?;
    for path in named_paths(&text) {
        if !root.join(path).exists() {
            problems.push(format!("{title} names {path}, which does not exist"));
        }
    }
    Ok(())
}

/// The code spans that look like paths of the repository.
fn named_paths(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|span| {
        let is_path = FOLDERS.iter().any(|folder| span.starts_with(folder));
        is_path && !span.contains(['*', ' ', '<', '{', '\n'])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_spans_that_are_paths_are_found() {
        let text = "see `crates/secret/src/lib.rs` and `cargo test`, not `crates/*/x` or crates/none";
        assert_eq!(named_paths(text).collect::<Vec<_>>(), ["crates/secret/src/lib.rs"]);
    }
}
