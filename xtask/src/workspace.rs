//! Static programs for nodes and pods, whose bytes do not depend on the folders they are compiled in.
//!
//! The compiler writes the paths of source files into programs, for panic messages. Compiling the same sources in other
//! folders would give other bytes, and an image with other reference values. So each of these folders gets a fixed name,
//! with rustc's `--remap-path-prefix`. C code contains no paths.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use cargo_metadata::{Metadata, MetadataCommand};
use clap::Args;
use cluster_types::Service;
use terminal::Progress;

/// Static, so that programs need nothing from the image or container around them.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// Programs that run on the node itself.
pub(crate) const NODE_PROGRAMS: [&str; 4] = ["node-init", "disk-mapper", "bootstrapper", "attestation-daemon"];

/// Compile the programs of the image, and others for nodes and pods in the same run and in the same way.
#[derive(Args)]
pub(crate) struct CompileArgs {
    /// Names of further programs of this workspace.
    #[arg(required = true, value_name = "PROGRAM")]
    programs: Vec<String>,
}

/// Runs `cargo xtask compile`.
pub(crate) fn run(args: &CompileArgs) -> Result<()> {
    let programs: Vec<_> = args.programs.iter().map(String::as_str).collect();
    Workspace::here()?.compile(&programs)?;
    Ok(())
}

/// A checkout and the folders that cargo uses for it.
pub(crate) struct Workspace {
    metadata: Metadata,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Workspace {
    /// The one this runs in, with the user's folders.
    pub(crate) fn here() -> Result<Self> {
        Self::open(Path::new("."), Vec::new())
    }

    /// A copy of what git has of it, to be compiled from scratch in other folders, as somebody else would.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<Self> {
        let folder = std::path::absolute(folder)?;
        let checkout = folder.join("checkout");
        copy_sources(&self.metadata.workspace_root, &checkout)?;
        let environment = vec![
            ("CARGO_HOME", folder.join("cargo")),
            ("CARGO_TARGET_DIR", folder.join("target")),
            ("CARGO_BUILD_BUILD_DIR", folder.join("target")),
        ];
        Self::open(&checkout, environment)
    }

    fn open(folder: &Path, environment: Vec<(&'static str, PathBuf)>) -> Result<Self> {
        let mut command = MetadataCommand::new();
        command
            .current_dir(folder)
            .other_options(["--locked", "--filter-platform", TARGET].map(String::from));
        for (name, value) in &environment {
            command.env(*name, value);
        }
        let metadata = command.exec().context("running cargo metadata")?;
        Ok(Self { metadata, environment })
    }

    /// Where the sources are.
    pub(crate) fn root(&self) -> &Path {
        self.metadata.workspace_root.as_std_path()
    }

    /// The folder of cargo's outputs.
    pub(crate) fn target_folder(&self) -> &Path {
        self.metadata.target_directory.as_std_path()
    }

    /// Compiles the programs of the image and further ones in one run of cargo, and returns the folder they are in.
    ///
    /// Always all of the image's programs: the crates they share get the features that any of them asks for, so the bytes of a
    /// program depend on what is compiled with it. Further programs ask for no more (a test compares).
    pub(crate) fn compile(&self, further: &[&str]) -> Result<PathBuf> {
        let mut programs = image_programs();
        programs.extend(further.iter().filter(|program| !image_programs().contains(program)));
        let mut cargo = cargo();
        cargo
            .current_dir(&self.metadata.workspace_root)
            .envs(self.environment.iter().cloned())
            .args(["build", "--quiet", "--locked", "--release", "--target", TARGET])
            .arg("--target-dir")
            .arg(self.target_folder())
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags()?);
        for program in &programs {
            cargo.args(["--package", self.package_of(program)?, "--bin", program]);
        }
        Progress::start().step_blocking(&format!("compiling {}", programs.join(", ")), || run_to_end(&mut cargo))?;
        Ok(self.target_folder().join(TARGET).join("release"))
    }

    fn package_of(&self, program: &str) -> Result<&str> {
        self.metadata
            .workspace_packages()
            .into_iter()
            .find(|package| {
                let mut targets = package.targets.iter();
                targets.any(|target| target.is_bin() && target.name == program)
            })
            .map(|package| package.name.as_str())
            .ok_or_else(|| anyhow!("no program of this workspace is named {program:?}"))
    }

    /// The compiler's flags, as cargo wants them in one variable, where they take the place of a user's own.
    fn flags(&self) -> Result<String> {
        let names = self.fixed_names()?;
        let flags = names
            .iter()
            .map(|(folder, name)| format!("--remap-path-prefix={folder}={name}"));
        Ok(flags.collect::<Vec<_>>().join("\x1f"))
    }

    /// Folders and what programs call them. Our own sources have no entry: cargo names them from the checkout on.
    fn fixed_names(&self) -> Result<Vec<(Utf8PathBuf, String)>> {
        let metadata = &self.metadata;
        let made = iter::once(&metadata.target_directory).chain(&metadata.build_directory);
        let made = made.map(|folder| (folder.clone(), "/target".into()));
        let dependencies = self.dependencies().map(|folder| (folder, "/dependencies".into()));
        let standard_library = standard_library(&metadata.workspace_root)?;
        Ok(made.chain(dependencies).chain([standard_library]).collect())
    }

    /// The folders with other people's crates: one for each registry, whose name depends on the user's configuration.
    fn dependencies(&self) -> impl Iterator<Item = Utf8PathBuf> {
        let foreign = self.metadata.packages.iter().filter(|package| package.source.is_some());
        let folders = foreign.filter_map(|package| package.manifest_path.parent()?.parent());
        folders.map(Utf8Path::to_owned).collect::<BTreeSet<_>>().into_iter()
    }
}

/// What runs on nodes and in their pods.
fn image_programs() -> Vec<&'static str> {
    let services = Service::ALL.map(Service::name);
    NODE_PROGRAMS.into_iter().chain(services).collect()
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs cargo until it ends.
pub(crate) fn run_to_end(cargo: &mut Command) -> Result<()> {
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo failed ({status})");
    Ok(())
}

/// The standard library's sources, which not every user has installed. The compiler gives them this name where they are not.
fn standard_library(workspace: &Utf8Path) -> Result<(Utf8PathBuf, String)> {
    let rustc = |arguments: &[&str]| {
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        output(rustc.current_dir(workspace).args(arguments))
    };
    let version = rustc(&["--version", "--verbose"])?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: "));
    let commit = commit.ok_or_else(|| anyhow!("rustc --version names no commit-hash"))?;
    let sysroot = rustc(&["--print", "sysroot"])?;
    Ok((
        Utf8Path::new(sysroot.trim_end()).join("lib/rustlib/src/rust"),
        format!("/rustc/{commit}"),
    ))
}

/// Copies the files that git knows, as they are now.
fn copy_sources(from: &Utf8Path, to: &Path) -> Result<()> {
    let mut git = Command::new("git");
    git.current_dir(from)
        .args(["ls-files", "-z", "--cached", "--deduplicate"]);
    let listed = output(&mut git).context("only a git checkout can be reproduced")?;
    // git lists a file that was deleted until that is committed.
    let files = listed
        .split_terminator('\0')
        .filter(|file| from.join(file).symlink_metadata().is_ok());
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    let mut copy = Command::new("cp");
    copy.current_dir(from)
        .args(["--parents", "--no-dereference", "--target-directory"])
        .arg(to)
        .arg("--")
        .args(files);
    output(&mut copy).map(drop)
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", name.display()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} failed ({}): {}",
        name.display(),
        output.status,
        errors.trim_end()
    );
    String::from_utf8(output.stdout).with_context(|| format!("{} prints something else than text", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `make e2e` compiles with the image's programs.
    const TEST_PROGRAMS: [&str; 2] = ["disk-vm-guest", "probe"];

    /// Every crate that is compiled into the programs, with its features.
    fn features(workspace: &Workspace, programs: &[&str]) -> BTreeSet<String> {
        let mut cargo = cargo();
        cargo
            .current_dir(workspace.root())
            .args(["tree", "--locked", "--target", TARGET, "--edges", "normal,build"])
            .args(["--prefix", "none", "--no-dedupe", "--format", "{p} {f}"]);
        for program in programs {
            cargo.args(["--package", workspace.package_of(program).unwrap()]);
        }
        output(&mut cargo).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn test_programs_do_not_change_what_the_image_is_compiled_from() {
        let workspace = Workspace::here().unwrap();
        let image = image_programs();
        let with_tests = [&image[..], &TEST_PROGRAMS].concat();
        let (image, with_tests) = (features(&workspace, &image), features(&workspace, &with_tests));
        let changed: Vec<_> = image.difference(&with_tests).collect();
        assert!(changed.is_empty(), "other features of these crates: {changed:?}");
        assert!(image.iter().any(|line| line.starts_with("tokio ")));
    }
}
