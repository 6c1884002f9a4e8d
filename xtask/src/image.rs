//! `cargo xtask image`: builds the node's programs and hands them to the image builder.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use cluster_types::Service;

use crate::folders;
use crate::service_images;
use crate::workspace::{NODE_PROGRAMS, Workspace, cargo, run_to_end};

const IMAGE_BUILDER: [&str; 5] = ["run", "--quiet", "-p", "image-builder", "--"];

/// The Debian packages of an image, in its definition and beside it.
const LOCK: &str = "packages.lock";

/// What can be done with the node image.
#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Build the disk image with its reference values.
    Build(BuildArgs),
    /// Build the image, build it again from scratch from a copy of what is in git, in other folders, and compare.
    Reproduce {
        /// The folder to write.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Print the folder with an image's unpacked Debian packages, unpacking them if necessary.
    Unpacked {
        /// `node`, or `tools`, which includes the kernel.
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
    /// Fail if a locked Debian package is no longer available, instead of choosing newer ones.
    #[arg(long)]
    locked: bool,
    /// The folder for results of earlier runs [default: constellation/image in the user's cache folder].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(command: &ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Build(args) => build(&Workspace::here()?, args),
        ImageCommand::Reproduce { out } => reproduce(out),
        ImageCommand::Unpacked { purpose } => image_builder(["unpacked".into(), purpose.clone()]),
        ImageCommand::Lock => image_builder(["lock".into()]),
        ImageCommand::Measure { uki } => image_builder(["measure".into(), uki.into()]),
    }
}

fn build(workspace: &Workspace, args: &BuildArgs) -> Result<()> {
    let (programs, container_images) = match (&args.programs, &args.container_images) {
        (Some(programs), Some(images)) => (programs.clone(), images.clone()),
        (programs, images) => {
            let made = Made::new(workspace)?;
            (
                programs.clone().unwrap_or(made.programs),
                images.clone().unwrap_or(made.container_images),
            )
        }
    };
    let mut further: Vec<OsString> = Vec::new();
    if let Some(cache) = &args.cache {
        further.extend(["--cache".into(), cache.into()]);
    }
    if args.locked {
        further.push("--locked".into());
    }
    put_together(&args.out, &programs, &container_images, further)
}

fn put_together(out: &Path, programs: &Path, container_images: &Path, further: Vec<OsString>) -> Result<()> {
    let arguments: [OsString; 7] = [
        "build".into(),
        "--out".into(),
        out.into(),
        "--programs".into(),
        programs.into(),
        "--container-images".into(),
        container_images.into(),
    ];
    image_builder(arguments.into_iter().chain(further))
}

/// The second build shares only the Debian packages and the image builder with the first. Its sources are what somebody else
/// would get from git, compiled in other folders.
fn reproduce(out: &Path) -> Result<()> {
    let second = out.join(".second");
    folders::empty(&second)?;
    let here = Workspace::here()?;
    let elsewhere = here.copy_to(&second)?;

    let made_here = Made::new(&here)?;
    put_together(out, &made_here.programs, &made_here.container_images, Vec::new())?;

    let definition = elsewhere.root().join("images");
    // A locked package may be gone from the mirror.
    fs::copy(out.join(LOCK), definition.join(LOCK)).context("copying the list of packages")?;
    let further = vec![
        "--definition".into(),
        definition.into(),
        "--results".into(),
        second.join("results").into(),
    ];
    let made_elsewhere = Made::new(&elsewhere)?;
    put_together(
        &second.join("out"),
        &made_elsewhere.programs,
        &made_elsewhere.container_images,
        further,
    )?;

    must_be_the_same(out, &second.join("out"))?;
    folders::remove(&second)
}

fn must_be_the_same(first: &Path, second: &Path) -> Result<()> {
    for file in ["node.img", "node.efi", "reference-values.json"] {
        let files = [first.join(file), second.join(file)];
        let same = Command::new("cmp").args(&files).status().context("cannot start cmp")?;
        ensure!(
            same.success(),
            "two builds of the same sources differ in {file}; the second build's files are in {}",
            second.display()
        );
    }
    Ok(())
}

/// What of an image is made from this workspace, in folders.
struct Made {
    programs: PathBuf,
    container_images: PathBuf,
}

impl Made {
    /// Compiles everything in one run of cargo; each service goes into a container image.
    fn new(workspace: &Workspace) -> Result<Self> {
        let compiled = workspace.compile(&[])?;
        let copy =
            |programs: &[&str], folder| copy_to_folder(&compiled, programs, &workspace.target_folder().join(folder));
        let services = copy(&Service::ALL.map(Service::name), "service-programs")?;
        let container_images = workspace.target_folder().join("service-images");
        service_images::write(&services, &container_images)?;
        Ok(Self {
            programs: copy(&NODE_PROGRAMS, "node-programs")?,
            container_images,
        })
    }
}

fn copy_to_folder(compiled: &Path, programs: &[&str], folder: &Path) -> Result<PathBuf> {
    folders::empty(folder)?;
    for program in programs {
        let compiled = compiled.join(program);
        fs::copy(&compiled, folder.join(program)).with_context(|| format!("copying {}", compiled.display()))?;
    }
    Ok(folder.to_owned())
}

/// The folder with what `list` names of the locked Debian packages, and the libraries that programs among it need.
pub(crate) fn select(workspace: &Path, list: &str) -> Result<PathBuf> {
    let output = cargo()
        .current_dir(workspace)
        .args(IMAGE_BUILDER)
        .args(["select", list])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the image builder failed ({})", output.status);
    Ok(str::from_utf8(&output.stdout)?.trim_end().into())
}

fn image_builder(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    run_to_end(cargo().args(IMAGE_BUILDER).args(arguments))
}
