//! The steps from Debian packages to a measured disk image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use attestation::{Expectations, ExpectedMembership, ExpectedStatements, SetUpVerifierError, Variants};
use attestation_variants::ReleaseVariants;
use build_cache::Key;
use clap::Args;
use cluster_types::{OperatorPublicKey, Variant};
use measurements::ReferenceValues;
use terminal::Progress;

use crate::cache::{Cache, CacheArgs};
use crate::definition::{Definition, load_globs};
use crate::disk::{self, Root};
use crate::kernel::{self, Kernel};
use crate::lock::{Lock, Purpose};
use crate::tools::Tools;
use crate::{initramfs, packages, prediction, tree, uki, units};

/// To be raised when new code makes something else from the same inputs, so that older cached results are not used.
const FORMAT: &str = "2";

/// The program that becomes `/init` of the initramfs; every other program of the folder goes to `/usr/bin`.
const NODE_INIT: &str = "node-init";

/// Folders on which the running system mounts something, or that links point to.
const MOUNT_POINTS: [&str; 6] = [
    "etc/kubernetes",
    "etc/cni",
    "opt",
    "var",
    "home",
    "usr/share/constellation/images",
];

/// Options of a build.
#[derive(Args)]
pub(crate) struct Build {
    /// Folder to write the image and its documents to
    #[arg(long)]
    out: PathBuf,
    /// Folder with the static programs of the node: node-init, disk-mapper, bootstrapper, attestation-daemon
    #[arg(long)]
    programs: PathBuf,
    /// Folder with OCI archives to put into the image
    #[arg(long)]
    container_images: Option<PathBuf>,
    /// The folder that describes the image
    #[arg(long, default_value = "images")]
    definition: PathBuf,
    /// Name and version of the image
    #[arg(long, default_value = concat!("constellation-node v", env!("CARGO_PKG_VERSION")), value_parser = parse_image_name)]
    image: String,
    /// The attestation variant of the machines that boot it
    #[arg(long, default_value_t = ReleaseVariants.supported()[0])]
    variant: Variant,
    /// Fail if a locked Debian package is no longer available, instead of choosing newer ones
    #[arg(long)]
    locked: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Builds the image.
///
/// 1. Fetch the locked Debian packages.
/// 2. Unpack them: the tools, and the packages of the node.
/// 3. Choose and decompress the kernel's modules.
/// 4. Assemble the root file system; make its image and hash tree.
/// 5. Assemble the initramfs and, with the root hash, the unified kernel image.
/// 6. Write the disk.
/// 7. Compute the reference values.
pub(crate) fn build(build: &Build) -> Result<()> {
    check_arguments(build)?;
    let definition = Definition::load(&build.definition)?;
    let progress = Progress::start();
    let cache = build.cache.open()?;
    let lock = fetch_packages(&definition, build.locked, &cache, &progress)?;

    let tools = Tools::new(unpacked(&lock, Purpose::Tools, &cache, &progress)?);
    let node_packages = unpacked(&lock, Purpose::Node, &cache, &progress)?;
    let kernel = unpack_kernel(&definition, &lock, &tools, &cache, &progress)?;
    let inputs = Inputs {
        build,
        definition: &definition,
        lock: &lock,
        kernel: &kernel,
        node_packages: &node_packages,
    };
    let root = build_root(&inputs, &tools, &cache, &progress)?;

    fs::create_dir_all(&build.out).with_context(|| format!("cannot create {}", build.out.display()))?;
    let work = tempfile::Builder::new().prefix(".image-").tempdir_in(&build.out)?;
    let uki = build_uki(&inputs, &root, &tools, work.path(), &progress)?;
    progress.line("disk image");
    let image = work.path().join("node.img");
    disk::build(&root, &uki, &tools, work.path(), &image)?;

    let values = reference_values(build.variant, &build.image, &fs::read(&uki)?)?;
    fs::write(work.path().join("reference-values.json"), values.to_json())?;
    fs::write(work.path().join("packages.lock"), lock.to_string())?;
    for file in ["node.efi", "node.img", "packages.lock", "reference-values.json"] {
        atomic_file::rename(&work.path().join(file), &build.out.join(file))?;
    }
    progress.line(&format!(
        "done: {}, root hash {}",
        build.out.join("node.img").display(),
        root.hash()
    ));
    Ok(())
}

/// Finds at once what would otherwise fail after minutes of work.
fn check_arguments(build: &Build) -> Result<()> {
    check_variant(build.variant).context("--variant")?;
    let node_init = build.programs.join(NODE_INIT);
    ensure!(node_init.is_file(), "--programs: {} is missing", node_init.display());
    if let Some(images) = &build.container_images {
        ensure!(
            images.is_dir(),
            "--container-images: {} is not a folder",
            images.display()
        );
    }
    Ok(())
}

/// An image of another variant could not be appraised by anyone.
fn check_variant(variant: Variant) -> Result<(), SetUpVerifierError> {
    let supported = ReleaseVariants.supported();
    if supported.contains(&variant) {
        Ok(())
    } else {
        Err(SetUpVerifierError::not_supported(variant, supported))
    }
}

/// The name goes between quotes into a file that shells read (os-release(5)).
pub(crate) fn parse_image_name(text: &str) -> Result<String, &'static str> {
    let plain = |c: u8| c == b' ' || c.is_ascii_graphic() && !b"\"'\\$`".contains(&c);
    if (1..=128).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 128 letters, digits, spaces and signs that need no quoting")
    }
}

/// Computes the reference values of a unified kernel image and writes them to standard output.
pub(crate) fn measure(uki: &Path, variant: Variant, image: &str) -> Result<()> {
    let file = fs::read(uki).with_context(|| format!("cannot read {}", uki.display()))?;
    let values = reference_values(variant, image, &file)?;
    Ok(terminal::print(values.to_json().trim_end())?)
}

/// The document, which is checked by the variant that will use it.
fn reference_values(variant: Variant, image: &str, uki: &[u8]) -> Result<ReferenceValues> {
    let image = ReferenceValues::new(variant, image, &prediction::reference_values(uki)?);
    // Any operator will do: only the values are checked.
    let statements = ExpectedStatements {
        operator: OperatorPublicKey::new([0; 32]),
        membership: ExpectedMembership::New,
    };
    let expectations = Expectations { image, statements };
    ReleaseVariants.verifier(variant, &expectations).context("--variant")?;
    Ok(expectations.image)
}

/// Writes the folder with the unpacked packages of one purpose to standard output.
pub(crate) fn unpacked_folder(purpose: Purpose, definition: &Path, cache: &CacheArgs) -> Result<()> {
    let definition = Definition::load(definition)?;
    let progress = Progress::start();
    let cache = cache.open()?;
    let lock = fetch_packages(&definition, false, &cache, &progress)?;
    let folder = unpacked(&lock, purpose, &cache, &progress)?;
    Ok(terminal::print(&folder.display().to_string())?)
}

/// Writes a folder with what the list names of the node's packages to standard output.
pub(crate) fn select(list: &Path, definition: &Path, cache: &CacheArgs) -> Result<()> {
    let patterns = load_globs(list)?;
    let definition = Definition::load(definition)?;
    let progress = Progress::start();
    let cache = cache.open()?;
    let lock = fetch_packages(&definition, false, &cache, &progress)?;
    let packages = unpacked(&lock, Purpose::Node, &cache, &progress)?;
    let key = patterns
        .iter()
        .fold(key_of("selected", &lock, Purpose::Node), |key, pattern| {
            key.text(pattern.as_str())
        });
    let folder = cache.result("selected", &key, |into| tree::keep(&patterns, &packages, into))?;
    Ok(terminal::print(&folder.display().to_string())?)
}

/// Writes a lock with the newest packages.
pub(crate) fn lock(definition: &Path, cache: &CacheArgs) -> Result<()> {
    let definition = Definition::load(definition)?;
    let lock = packages::choose(&definition, &cache.open()?, &Progress::start())?;
    let path = definition.lock_file();
    fs::write(&path, lock.to_string()).with_context(|| format!("cannot write {}", path.display()))
}

/// The lock's packages, or newer ones if the mirror has dropped them and `locked` is not set.
fn fetch_packages(definition: &Definition, locked: bool, cache: &Cache, progress: &Progress) -> Result<Lock> {
    let reason = match packages::load_lock(definition)? {
        None => "images/packages.lock does not cover the listed packages".to_owned(),
        Some(lock) => match packages::fetch(&lock, cache, progress) {
            Ok(()) => return Ok(lock),
            Err(error) => format!("cannot fetch the locked packages: {error:#}"),
        },
    };
    if locked {
        bail!("{reason}");
    }
    progress.line(&format!(
        "{reason}; choosing newer packages, so what is built from them differs from what the lock gives"
    ));
    packages::choose(definition, cache, progress)
}

fn unpacked(lock: &Lock, purpose: Purpose, cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    cache.result("unpacked", &key_of("unpacked", lock, purpose), |into| {
        progress.line(&format!("unpacking {} packages: {purpose}", lock.of(purpose).count()));
        packages::unpack(lock, purpose, cache, into)
    })
}

/// Names a result that is made from the packages of one purpose.
fn key_of(step: &str, lock: &Lock, purpose: Purpose) -> Key {
    lock.of(purpose).fold(Key::new(step).text(FORMAT), |key, package| {
        key.text(&package.sha256.to_string())
    })
}

fn unpack_kernel(
    definition: &Definition,
    lock: &Lock,
    tools: &Tools,
    cache: &Cache,
    progress: &Progress,
) -> Result<Kernel> {
    let mut key = key_of("kernel", lock, Purpose::Tools);
    for pattern in &definition.modules {
        key = key.text(pattern.as_str());
    }
    Kernel::open(cache.result("kernel", &key, |into| {
        progress.line("kernel modules");
        kernel::unpack(tools, &definition.modules, into)
    })?)
}

/// The inputs of the root file system.
struct Inputs<'build> {
    build: &'build Build,
    definition: &'build Definition,
    lock: &'build Lock,
    kernel: &'build Kernel,
    node_packages: &'build Path,
}

fn build_root(inputs: &Inputs<'_>, tools: &Tools, cache: &Cache, progress: &Progress) -> Result<Root> {
    let work = cache.temporary()?;
    let tree = work.path().join("root");
    progress.line("root file system");
    assemble_root(inputs, &tree)?;
    let mut key = Key::new("root").text(FORMAT).folder(&tree)?;
    for package in inputs.lock.of(Purpose::Tools) {
        key = key.text(&package.sha256.to_string());
    }
    Root::open(cache.result("root", &key, |into| {
        progress.line("root file system: image and hash tree");
        Root::build(&tree, tools, into)
    })?)
}

fn assemble_root(inputs: &Inputs<'_>, root: &Path) -> Result<()> {
    tree::keep(&inputs.definition.keep, inputs.node_packages, root)?;
    tree::overlay(&inputs.kernel.root(), root)?;
    tree::overlay(&inputs.definition.overlay(), root)?;
    let early: String = inputs
        .kernel
        .load_order(&inputs.definition.modules_early)?
        .into_iter()
        .map(|module| module + "\n")
        .collect();
    tree::write_file(&root.join("usr/lib/constellation/modules.early"), early)?;
    tree::write_file(
        &root.join("usr/share/constellation/packages.lock"),
        inputs.lock.to_string(),
    )?;
    tree::write_file(&root.join("usr/lib/os-release"), os_release(&inputs.build.image))?;
    let version = format!("{}\n", inputs.build.image);
    tree::write_file(&root.join("usr/share/constellation/image-version"), version)?;
    join_certificates(root)?;
    for folder in MOUNT_POINTS {
        fs::create_dir_all(root.join(folder))?;
    }
    copy_programs(&inputs.build.programs, root)?;
    if let Some(images) = &inputs.build.container_images {
        tree::overlay(images, &root.join("usr/share/constellation/images"))?;
    }
    tree::finish(root)?;
    tree::check_closed(root)?;
    units::check(root)
}

fn copy_programs(programs: &Path, root: &Path) -> Result<()> {
    let listed = fs::read_dir(programs).with_context(|| format!("cannot list {}", programs.display()))?;
    for entry in listed {
        let entry = entry?;
        tree::check_static(&entry.path())?;
        if entry.file_name() != NODE_INIT {
            tree::copy_file(&entry.path(), &root.join("usr/bin").join(entry.file_name()), 0o755)?;
        }
    }
    Ok(())
}

fn os_release(image: &str) -> String {
    let (id, version) = image.split_once(' ').unwrap_or((image, ""));
    format!(
        "NAME=\"Constellation\"\nID=constellation\nID_LIKE=debian\nIMAGE_ID=\"{id}\"\nIMAGE_VERSION=\"{version}\"\n"
    )
}

/// Joins all certificate authorities into one file, where Go and OpenSSL look for it.
fn join_certificates(root: &Path) -> Result<()> {
    let folder = root.join("usr/share/ca-certificates");
    let mut names = tree::walk(&folder)?;
    names.sort();
    let mut all = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".crt")) {
        let certificate = fs::read(folder.join(name))?;
        all.extend_from_slice(certificate.trim_ascii_end());
        all.push(b'\n');
    }
    fs::remove_dir_all(folder)?;
    tree::write_file(&root.join("etc/ssl/certs/ca-certificates.crt"), all)
}

fn build_uki(inputs: &Inputs<'_>, root: &Root, tools: &Tools, work: &Path, progress: &Progress) -> Result<PathBuf> {
    progress.line("unified kernel image");
    let node_init = inputs.build.programs.join(NODE_INIT);
    let initramfs = work.join("initramfs.zst");
    initramfs::build(
        inputs.definition,
        inputs.kernel,
        inputs.node_packages,
        &node_init,
        tools,
        work,
        &initramfs,
    )?;
    let mut options = inputs.definition.kernel_command_line.clone();
    options.extend(root.options()?);
    let output = work.join("node.efi");
    uki::build(inputs.kernel, &initramfs, &options.join(" "), tools, &output)?;
    Ok(output)
}
