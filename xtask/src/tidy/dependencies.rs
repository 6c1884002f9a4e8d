//! Dependencies between packages point one way.
//!
//! 1. No package depends on a program.
//! 2. Test crates (`test-*`, and what is in `tests/`) are linked by tests and by other test crates only, so no release can contain
//!    them.
//! 3. There is no circle, not even one that cargo accepts because a link of it is needed by tests only.

use cargo_metadata::{DependencyKind, Metadata, Package};
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

pub(crate) fn check(metadata: &Metadata) -> Vec<String> {
    let packages = metadata.workspace_packages();
    let mut problems = check_directions(&packages);
    problems.extend(check_circles(&packages));
    problems
}

fn check_directions(packages: &[&Package]) -> Vec<String> {
    let mut problems = Vec::new();
    let is_in = |name: &str, wanted: &str| {
        packages
            .iter()
            .any(|package| package.name == name && folder(package) == wanted)
    };
    let is_for_tests = |name: &str| name.starts_with("test-") || is_in(name, "tests");
    for package in packages {
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

fn check_circles(packages: &[&Package]) -> Vec<String> {
    let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let dependencies = packages.iter().flat_map(|package| {
        let named = package.dependencies.iter().map(|dependency| dependency.name.as_str());
        let ours = named.filter(|name| names.contains(name));
        ours.map(|name| (package.name.as_str(), name))
    });
    circles(dependencies)
        .iter()
        .map(|circle| format!("packages depend on each other in a circle: {}", circle.join(", ")))
        .collect()
}

/// The groups of packages each of which depends, through others or by itself, on every one of its group.
fn circles<'a>(dependencies: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Vec<&'a str>> {
    let graph: DiGraphMap<&str, ()> = dependencies.collect();
    let mut circles: Vec<_> = tarjan_scc(&graph)
        .into_iter()
        .filter(|group| group.len() > 1 || graph.contains_edge(group[0], group[0]))
        .collect();
    circles.iter_mut().for_each(|circle| circle.sort_unstable());
    circles.sort_unstable();
    circles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_through_a_dev_dependency_is_found() {
        let dependencies = [
            ("quote", "words"),
            ("test-tpm", "quote"),
            ("quote", "test-tpm"),
            ("a", "quote"),
        ];
        assert_eq!(circles(dependencies.into_iter()), [["quote", "test-tpm"]]);
    }

    #[test]
    fn a_package_whose_tests_use_itself_as_a_dependency_is_a_circle() {
        assert_eq!(circles([("a", "a")].into_iter()), [["a"]]);
    }
}
