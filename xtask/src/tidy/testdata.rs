//! Every folder `testdata` says in a README where its files came from.

use cargo_metadata::Metadata;

pub(crate) fn check(metadata: &Metadata) -> Vec<String> {
    let mut problems = Vec::new();
    for package in metadata.workspace_packages() {
        let testdata = package.manifest_path.with_file_name("testdata");
        if testdata.exists() && !testdata.join("README.md").exists() {
            problems.push(format!("{testdata} does not say where it came from"));
        }
    }
    problems
}
