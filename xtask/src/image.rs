//! `cargo xtask image`: builds the node's programs and hands them to the image builder.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use cluster_types::Service;

use crate::service_images;
use crate::workspace::{Workspace, cargo, run_to_end};

/// Programs that run on the node itself.
const NODE_PROGRAMS: [&str; 3] = ["node-init", "disk-mapper", "bootstrapper"];

/// What can be done with the node image.
#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Build the disk image with its reference values.
    Build(BuildArgs),
    /// Build the image twice, the second time from a copy of the sources without any cache, and compare.
    Reproduce(BuildArgs),
    /// Print the folder with the unpacked Debian packages of an image, unpacking them if need be.
    Unpacked {
        /// `node` or `tools`, which has the kernel too.
        purpose: OsString,
    },
    /// Choose the newest Debian packages and write images/packages.lock.
    Lock,
    /// Compute the reference values of a unified kernel image.
    Measure {
        /// The unified kernel image, `node.efi` beside the disk image.
        uki: PathBuf,
    },
}

/// What goes into an image.
#[derive(Args)]
pub(crate) struct BuildArgs {
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Static programs of the node, instead of those of this workspace.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// OCI archives to put into the image, instead of those of this workspace's services.
    #[arg(long, value_name = "DIR")]
    container_images: Option<PathBuf>,
    /// Fail if a locked Debian package cannot be had any more, instead of choosing newer ones.
    #[arg(long)]
    locked: bool,
    /// The folder for results of earlier runs [default: constellation/image in the user's cache folder].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(command: &ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Build(args) => build(&Workspace::here()?, args, &args.out, args.cache.as_deref()),
        ImageCommand::Reproduce(args) => reproduce(args),
        ImageCommand::Unpacked { purpose } => image_builder(["unpacked".into(), purpose.clone()]),
        ImageCommand::Lock => image_builder(["lock".into()]),
        ImageCommand::Measure { uki } => image_builder(["measure".into(), uki.into()]),
    }
}

fn build(workspace: &Workspace, args: &BuildArgs, out: &Path, cache: Option<&Path>) -> Result<()> {
    let programs = match &args.programs {
        Some(programs) => programs.clone(),
        None => programs(workspace, &NODE_PROGRAMS, "node-programs")?,
    };
    let container_images = match &args.container_images {
        Some(folder) => folder.clone(),
        None => service_images(workspace)?,
    };
    let mut arguments: Vec<OsString> = vec![
        "build".into(),
        "--out".into(),
        out.into(),
        "--programs".into(),
        programs.into(),
        "--container-images".into(),
        container_images.into(),
    ];
    if let Some(cache) = cache {
        arguments.extend(["--cache".into(), cache.into()]);
    }
    if args.locked {
        arguments.push("--locked".into());
    }
    image_builder(arguments)
}

fn reproduce(args: &BuildArgs) -> Result<()> {
    let here = Workspace::here()?;
    build(&here, args, &args.out, args.cache.as_deref())?;
    let second = args.out.join(".second");
    remove(&second)?;
    let elsewhere = here.copy_to(&second)?;
    build(&elsewhere, args, &second.join("out"), Some(&second.join("cache")))?;
    for file in ["node.img", "node.efi", "packages.lock", "reference-values.json"] {
        let files = [args.out.join(file), second.join("out").join(file)];
        let same = Command::new("cmp").args(&files).status().context("cannot start cmp")?;
        ensure!(
            same.success(),
            "two builds of the same sources differ in {file}; what the second made is in {}",
            second.display()
        );
    }
    remove(&second)
}

/// Removes what the second build made, or an interrupted one left.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Compiles the services and puts each into a container image.
fn service_images(workspace: &Workspace) -> Result<PathBuf> {
    let programs = programs(workspace, &Service::ALL.map(Service::name), "service-programs")?;
    let images = workspace.target_folder().join("service-images");
    service_images::write(&programs, &images)?;
    Ok(images)
}

/// Compiles programs and copies them into a folder of their own.
fn programs(workspace: &Workspace, programs: &[&str], folder: &str) -> Result<PathBuf> {
    let compiled = workspace.compile(programs)?;
    let folder = workspace.target_folder().join(folder);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for program in programs {
        let compiled = compiled.join(program);
        fs::copy(&compiled, folder.join(program)).with_context(|| format!("copying {}", compiled.display()))?;
    }
    Ok(folder)
}

fn image_builder(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    let run = ["run", "--quiet", "-p", "image-builder", "--"].map(OsString::from);
    run_to_end(cargo().args(run).args(arguments))
}
