//! Files of a package do not use each other in a circle: each can be understood without the files that use it.
//!
//! A file uses another one of its package when its code names something that is defined there: in a `use`, or by a path with at
//! least two segments, also in the arguments of macros and attributes. Re-exports are followed to the file that defines.
//!
//! Not counted:
//! - code for tests only (`#[cfg(test)]`, `#[test]`);
//! - `mod child;`, and `pub use child::Item` in a module above `child`: the table of contents;
//! - methods, and what a path reaches without naming its module: a type's own functions count for the file of the type.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, Package};
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use super::modules::{Target, Uses};
use super::sources::Sources;

pub(crate) fn check(metadata: &Metadata, sources: &Sources) -> Result<Vec<String>> {
    let root = metadata.workspace_root.as_std_path();
    let mut problems = Vec::new();
    for package in metadata.workspace_packages() {
        let uses = uses_of_package(package, root, sources)?;
        problems.extend(circles(&uses).iter().map(|circle| describe(circle, &uses)));
    }
    Ok(problems)
}

fn uses_of_package(package: &Package, root: &Path, sources: &Sources) -> Result<Uses> {
    let mut uses = Uses::new();
    for target in &package.targets {
        let file = target.src_path.as_std_path().strip_prefix(root)?;
        let target = Target::load(file, sources).with_context(|| format!("in {}", file.display()))?;
        uses.extend(target.uses_between_files());
    }
    Ok(uses)
}

fn circles(uses: &Uses) -> Vec<BTreeSet<&Path>> {
    let graph: DiGraphMap<&Path, ()> = uses.keys().map(|(from, to)| (from.as_path(), to.as_path())).collect();
    let groups = tarjan_scc(&graph).into_iter().filter(|group| group.len() > 1);
    groups.map(BTreeSet::from_iter).collect()
}

fn describe(circle: &BTreeSet<&Path>, uses: &Uses) -> String {
    let within = |path: &PathBuf| circle.contains(path.as_path());
    let lines = uses.iter().filter(|((from, to), _)| within(from) && within(to));
    let lines = lines.map(|((from, to), path)| format!("\n    {} uses {path} of {}", from.display(), to.display()));
    format!("files use each other in a circle:{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The circles of a library with these files.
    fn check(files: &[(&str, &str)]) -> Vec<String> {
        let sources = Sources::of(files);
        let target = Target::load(Path::new("src/lib.rs"), &sources).unwrap();
        let uses = target.uses_between_files();
        let name = |path: &&Path| path.file_stem().unwrap().to_string_lossy().into_owned();
        let circles = circles(&uses).into_iter();
        circles
            .map(|circle| circle.iter().map(name).collect::<Vec<_>>().join(" "))
            .collect()
    }

    fn check_two(a: &str, b: &str) -> bool {
        let root = ("src/lib.rs", "mod a; mod b; pub use a::A;");
        check(&[root, ("src/a.rs", a), ("src/b.rs", b)]) == ["a b"]
    }

    #[test]
    fn files_that_use_each_other_are_a_circle() {
        assert!(check_two(
            "use crate::b::B; pub struct A;",
            "use super::a::A; pub struct B;"
        ));
        assert!(!check_two("use crate::b::B; pub struct A;", "pub struct B;"));
    }

    #[test]
    fn re_exports_are_followed() {
        assert!(check_two(
            "use crate::b::B; pub struct A;",
            "use crate::A; pub struct B;"
        ));
    }

    #[test]
    fn paths_in_code_macros_and_attributes_are_uses() {
        for code in [
            "fn f() { crate::a::g() }",
            "use super::a; fn f() { a::g() }",
            "fn f(x: Option<super::a::A>) {}",
            "fn f() { println!(\"{}\", crate::a::g()) }",
            "#[arg(value_parser = crate::a::g)] struct B;",
            "#[serde(with = \"crate::a\")] struct B;",
            "use super::*; fn f() { a::g() }",
        ] {
            assert!(check_two("use crate::b; pub struct A; pub fn g() {}", code), "{code}");
        }
    }

    #[test]
    fn code_for_tests_and_visibility_are_not_uses() {
        for code in [
            "#[cfg(test)] mod tests { use crate::a::A; }",
            "#[cfg(test)] use crate::a::A;",
            "#[test] fn f() { crate::a::g() }",
            "pub(in crate::a) struct B;",
            "use ::a::A;",
            "// crate::a::A",
        ] {
            assert!(!check_two("use crate::b; pub struct A; pub fn g() {}", code), "{code}");
        }
    }

    #[test]
    fn a_table_of_contents_is_not_a_use() {
        let child = ("src/a.rs", "use crate::Top; pub struct A;");
        assert_eq!(
            check(&[("src/lib.rs", "mod a; pub use a::A; pub struct Top;"), child]),
            [""; 0]
        );
        assert_eq!(
            check(&[("src/lib.rs", "mod a; use a::A; pub struct Top;"), child]),
            ["a lib"]
        );
    }

    #[test]
    fn a_function_with_the_name_of_its_module_is_not_the_module() {
        let root = ("src/lib.rs", "mod a; mod b; use a::a; fn f() { b::f() }");
        let b = ("src/b.rs", "use crate::a::A;");
        assert_eq!(check(&[root, ("src/a.rs", "pub fn a() {} pub struct A;"), b]), [""; 0]);
    }

    #[test]
    fn a_circle_of_three_is_found_across_folders_and_inline_modules() {
        let root = ("src/lib.rs", "mod a; mod b;");
        let a = ("src/a.rs", "mod inner { pub mod deep; } use self::inner::deep::D;");
        let deep = ("src/a/inner/deep.rs", "use crate::b::{self, B}; pub struct D;");
        let b = ("src/b/mod.rs", "use crate::a::Thing; pub struct B;");
        assert_eq!(check(&[root, a, deep, b]), ["deep a mod"]);
    }

    #[test]
    fn a_file_that_is_named_has_its_children_beside_it() {
        let root = ("src/lib.rs", "#[path = \"../src/named.rs\"] mod a;");
        let named = ("src/named.rs", "mod b; use b::B; pub struct A;");
        assert_eq!(
            check(&[root, named, ("src/b.rs", "use super::A; pub struct B;")]),
            ["b named"]
        );
    }
}
