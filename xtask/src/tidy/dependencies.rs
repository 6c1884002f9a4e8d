//! Dependencies between packages point one way.
//!
//! 1. No package depends on a program.
//! 2. Test crates (`test-*`, and what is in `tests/`) are linked by tests and by other test crates only, so no release can contain
//!    them.

use cargo_metadata::{DependencyKind, Metadata, Package};

pub(crate) fn check(metadata: &Metadata) -> Vec<String> {
    let packages = metadata.workspace_packages();
    let mut problems = Vec::new();
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
    problems
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
