//! `cargo xtask upstream`: builds upstream Kubernetes from its published Go modules and writes a mirror.
//!
//! 1. Programs are built from the module folders below `upstream/`, whose `go.sum` pins every source.
//! 2. The packet filter tools come from the Debian packages that nodes are made of, as `images/packages.lock` names them; or
//!    newer ones, with a message, when Debian's mirror has dropped those.
//! 3. Images, binaries and CNI plugins become the files of a mirror, listed with their hashes in `components.json`.
//!
//! Everything is cached under the hash of its inputs, and folders appear by renaming only, so an interrupted run is
//! repeated by running it again.

mod go;
mod images;
mod mirror;
mod packet_filter;
mod programs;
mod recipe;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use build_cache::{Cache, Key};
use clap::Args;

use crate::image;
use go::Go;
use mirror::MirrorFolder;
use programs::Programs;
use recipe::{Minor, Module, Recipe};
use terminal::Progress;

/// Build upstream Kubernetes from its Go modules and write a mirror.
#[derive(Args)]
pub(crate) struct UpstreamArgs {
    /// The minor version.
    #[arg(long, value_enum, default_value_t = Minor::V1_35)]
    version: Minor,
    /// The folder to write; without it the result stays in the cache.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Build only these programs and put them into the folder.
    #[arg(long, value_name = "PROGRAM,...", value_delimiter = ',', requires = "out")]
    only: Vec<String>,
    /// The folder for results of earlier runs [default: ~/.cache/constellation/kubernetes].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// Runs the command and prints where the result is.
pub(crate) fn run(args: &UpstreamArgs) -> Result<()> {
    let build = Build {
        recipe: Recipe::new(args.version),
        sources: workspace_root().join("upstream"),
        cache: open_cache(args.cache.clone())?,
        progress: Progress::start(),
    };
    let path = match &args.out {
        Some(out) if !args.only.is_empty() => build.programs_to(&args.only, out)?,
        Some(out) => build.mirror()?.copy_to(out)?,
        None => build.mirror()?.into_path(),
    };
    build.progress.line("finished");
    Ok(terminal::print(&path.display().to_string())?)
}

/// What one run works with.
struct Build {
    recipe: Recipe,
    sources: PathBuf,
    cache: Cache,
    progress: Progress,
}

impl Build {
    fn programs_to(&self, names: &[String], out: &Path) -> Result<PathBuf> {
        let modules = self.recipe.modules();
        let known = || modules.iter().flat_map(Module::names).collect::<Vec<_>>().join(", ");
        let find = |name: &String| {
            let module = modules.iter().find(|module| module.names().any(|known| known == name));
            module.with_context(|| format!("--only: no program is named {name:?}; there are: {}", known()))
        };
        // All are known before the first is built, which takes minutes.
        let found = names.iter().map(find).collect::<Result<Vec<_>>>()?;
        fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
        for (name, module) in names.iter().zip(found) {
            let folder = self.module(&module.only(names))?;
            mirror::copy_file(&folder.join(name), &out.join(name))?;
        }
        Ok(out.canonicalize()?)
    }

    fn mirror(&self) -> Result<MirrorFolder> {
        let root = workspace_root();
        let packet_filter = image::select(&root, "upstream/packet-filter.keep")?;
        let packet_filter = packet_filter::layer(&packet_filter)?;
        let modules = self.recipe.modules();
        let keys = modules.iter().map(|module| self.module_key(module));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let key = mirror::key(
            &self.recipe,
            &keys,
            &packet_filter,
            &root.join("crates/oci-archive/src"),
        )?;
        let folder = self.cache.result("mirrors", &key, |folder| {
            let programs = modules
                .iter()
                .map(|module| self.module(module))
                .collect::<Result<Vec<_>>>()?;
            let programs = Programs::new(programs);
            self.check_image_names(&programs.path("kubeadm")?)?;
            let images = images::all(&self.recipe, &programs, &packet_filter)?;
            mirror::write(folder, &self.recipe, &programs, &images, &self.progress)
        })?;
        Ok(MirrorFolder::new(folder))
    }

    /// The folder with the module's programs, which are built if they are not there yet.
    fn module(&self, module: &Module) -> Result<PathBuf> {
        self.cache.result("programs", &self.module_key(module)?, |folder| {
            let names: Vec<_> = module.names().collect();
            let what = format!("{} {} ({})", module.title, module.version, names.join(" "));
            self.progress.step_blocking(&format!("building {what}"), || {
                Go::find()?.build(module, &self.sources, folder)
            })
        })
    }

    /// Everything a module's programs depend on.
    fn module_key(&self, module: &Module) -> Result<Key> {
        let folder = self.sources.join(&module.folder);
        let key = Key::new(module.title)
            .text(LAYOUT)
            .text(go::TOOLCHAIN)
            .text(&go::FLAGS.join(" "))
            .text(&module.link_flags())
            .text(&format!("{:?}", module.programs))
            .text(&format!("{:?}", module.source));
        key.folder(&folder)
            .with_context(|| format!("reading {}", folder.display()))
    }

    /// kubeadm asks containerd for exactly these names; a typo would show only on a node without internet.
    fn check_image_names(&self, kubeadm: &Path) -> Result<()> {
        let version = format!("--kubernetes-version={}", self.recipe.kubernetes);
        let output = std::process::Command::new(kubeadm)
            .args(["config", "images", "list", &version])
            .output()?;
        ensure!(
            output.status.success(),
            "kubeadm: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let wanted: Vec<_> = str::from_utf8(&output.stdout)?.lines().map(str::to_owned).collect();
        for name in &wanted {
            ensure!(
                self.recipe.image_names().contains(name),
                "kubeadm needs the image {name}, which this command does not build"
            );
        }
        Ok(())
    }
}

fn open_cache(folder: Option<PathBuf>) -> Result<Cache> {
    let folder = match folder {
        Some(folder) => folder,
        None => build_cache::user_cache()
            .context("neither XDG_CACHE_HOME nor HOME is set: pass --cache DIR")?
            .join("constellation/kubernetes"),
    };
    Ok(Cache::open(&folder)?)
}

/// The checkout this program runs in: cargo sets the variable, and a copied program remembers where it was built.
fn workspace_root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    xtask.parent().map_or(xtask.clone(), Path::to_owned)
}

/// To be changed when other code than that of the keys makes other results from the same inputs.
const LAYOUT: &str = "constellation xtask upstream 2";
