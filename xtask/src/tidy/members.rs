//! Every package of the tree is a member of the workspace, on a line that says what it is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::Metadata;

/// The folders of packages.
const FOLDERS: [&str; 3] = ["apps", "crates", "tests"];

pub(super) fn check(root: &Path, metadata: &Metadata) -> Result<Vec<String>> {
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("reading Cargo.toml")?;
    let mut problems = Vec::new();
    for package in metadata.workspace_packages() {
        let folder = package.manifest_path.parent().context("a manifest is in a folder")?;
        let folder = folder.strip_prefix(root)?.as_str();
        problems.extend(compare(
            &manifest,
            folder,
            package.description.as_deref().unwrap_or_default(),
        ));
    }
    // Cargo does not know a program that no line names.
    for folder in FOLDERS {
        for entry in fs::read_dir(root.join(folder)).with_context(|| format!("reading {folder}"))? {
            let path = format!("{folder}/{}", entry?.file_name().display());
            if root.join(&path).join("Cargo.toml").is_file() && !manifest.contains(&format!("    \"{path}\", # ")) {
                problems.push(format!("Cargo.toml: the members do not name {path}"));
            }
        }
    }
    Ok(problems)
}

/// A member is written with the description of its own manifest.
fn compare(manifest: &str, folder: &str, description: &str) -> Option<String> {
    let expected = format!("    \"{folder}\", # {description}");
    let is_there = manifest.lines().any(|line| line == expected);
    (!is_there).then(|| format!("Cargo.toml: the members have no line `{}`", expected.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_the_description_of_its_manifest() {
        let manifest = "members = [\n    \"crates/secret\", # Byte types\n]\n";
        assert_eq!(compare(manifest, "crates/secret", "Byte types"), None);
        for (folder, description) in [
            ("crates/secret", "Byte types for secrets"),
            ("crates/digest", "Byte types"),
        ] {
            let problem = compare(manifest, folder, description).unwrap();
            assert!(problem.contains(folder) && problem.contains(description), "{problem}");
        }
    }
}
