//! The kernel and the modules a node may load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, ensure};

use crate::glob::Glob;
use crate::tools::{Tools, run};
use crate::tree;

/// End of a module that carries a signature (kernel documentation, "Kernel module signing facility").
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";

/// A kernel with its modules, as [`unpack`] wrote them.
pub(crate) struct Kernel {
    folder: PathBuf,
    release: String,
}

/// Copies the kernel, the chosen modules and everything they depend on into a folder, decompressed.
///
/// Modules keep the signatures of Debian's kernel, which were appended before compression.
pub(crate) fn unpack(tools: &Tools, modules: &[Glob], into: &Path) -> Result<()> {
    let release = release(tools.root())?;
    tree::copy_file(
        &tools.root().join(format!("boot/vmlinuz-{release}")),
        &into.join("linux"),
        0o644,
    )?;
    tree::write_file(&into.join("release"), &release)?;

    let indexes = tempfile::tempdir()?;
    depmod(tools, tools.root(), indexes.path(), &release)?;
    let from = tools.root().join("usr/lib/modules").join(&release);
    let dependencies = Dependencies::load(&indexes.path().join("lib/modules").join(&release).join("modules.dep"))?;
    let to = into.join("root/usr/lib/modules").join(&release);
    for module in dependencies.closure(modules)? {
        decompress(tools, &from.join(&module), &to.join(without_xz(&module)))?;
    }
    // kubeadm's preflight check reads it (this is one of the places it looks in).
    tree::copy_file(
        &tools.root().join(format!("boot/config-{release}")),
        &to.join("config"),
        0o644,
    )?;
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        tree::copy_file(&from.join(list), &to.join(list), 0o644)?;
    }
    // depmod looks only in lib/modules.
    let link = into.join("root/lib");
    std::os::unix::fs::symlink("usr/lib", &link)?;
    depmod(tools, &into.join("root"), &into.join("root"), &release)?;
    Ok(fs::remove_file(link)?)
}

impl Kernel {
    pub(crate) fn open(folder: PathBuf) -> Result<Self> {
        let release = fs::read_to_string(folder.join("release"))?;
        Ok(Self { folder, release })
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("linux")
    }

    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// The modules as part of a root file system.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Paths in the root file system of the named modules and everything they depend on, in an order in which they can be loaded.
    pub(crate) fn load_order(&self, modules: &[Glob]) -> Result<Vec<String>> {
        let folder = format!("usr/lib/modules/{}", self.release);
        let dependencies = Dependencies::load(&self.root().join(&folder).join("modules.dep"))?;
        let order = dependencies.load_order(modules)?;
        Ok(order.into_iter().map(|module| format!("{folder}/{module}")).collect())
    }
}

/// `modules.dep`: what every module needs, by paths below the folder of the modules.
struct Dependencies(BTreeMap<String, Vec<String>>);

impl Dependencies {
    fn load(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let entries = text.lines().map(|line| {
            let (module, needs) = line
                .split_once(':')
                .ok_or_else(|| anyhow!("cannot parse this line of modules.dep: {line}"))?;
            Ok((module.to_owned(), needs.split_whitespace().map(str::to_owned).collect()))
        });
        Ok(Self(entries.collect::<Result<_>>()?))
    }

    fn matching(&self, patterns: &[Glob]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for pattern in patterns {
            let before = found.len();
            let matches = |module: &&String| {
                let name = module.strip_prefix("kernel/").unwrap_or(module);
                pattern.matches(without_xz(name))
            };
            found.extend(self.0.keys().filter(matches).cloned());
            ensure!(found.len() > before, "no kernel module matches {}", pattern.as_str());
        }
        Ok(found)
    }

    fn closure(&self, patterns: &[Glob]) -> Result<BTreeSet<String>> {
        Ok(self.load_order(patterns)?.into_iter().collect())
    }

    fn load_order(&self, patterns: &[Glob]) -> Result<Vec<String>> {
        let mut order = Vec::new();
        for module in self.matching(patterns)? {
            self.add(&module, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, module: &str, order: &mut Vec<String>) -> Result<()> {
        if order.iter().any(|added| added == module) {
            return Ok(());
        }
        let needs = self
            .0
            .get(module)
            .ok_or_else(|| anyhow!("modules.dep does not list {module}"))?;
        for needed in needs {
            self.add(needed, order)?;
        }
        order.push(module.to_owned());
        Ok(())
    }
}

fn without_xz(module: &str) -> &str {
    module.strip_suffix(".xz").unwrap_or(module)
}

fn release(root: &Path) -> Result<String> {
    let mut releases = Vec::new();
    for entry in fs::read_dir(root.join("usr/lib/modules"))? {
        releases.push(entry?.file_name().to_string_lossy().into_owned());
    }
    ensure!(releases.len() == 1, "expected one kernel, found {releases:?}");
    Ok(releases.remove(0))
}

fn depmod(tools: &Tools, root: &Path, into: &Path, release: &str) -> Result<()> {
    let mut command = tools.command("usr/sbin/depmod");
    command
        .arg("--errsyms")
        .arg("--basedir")
        .arg(root)
        .arg("--outdir")
        .arg(into)
        .arg(release);
    run(&mut command).map(drop)
}

fn decompress(tools: &Tools, from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    let status = tools
        .command("usr/bin/xz")
        .args(["--decompress", "--stdout"])
        .arg(from)
        .stdout(Stdio::from(File::create(to)?))
        .status()?;
    ensure!(status.success(), "xz cannot decompress {}", from.display());
    let module = fs::read(to)?;
    ensure!(
        module.ends_with(SIGNATURE_MARK),
        "module {} is not signed",
        from.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str) -> Result<Vec<String>> {
        let text = "kernel/md/verity.ko.xz: kernel/md/bufio.ko.xz kernel/md/mod.ko.xz\n\
                    kernel/md/bufio.ko.xz: kernel/md/mod.ko.xz\n\
                    kernel/md/mod.ko.xz:\n";
        Dependencies::parse(text)?.load_order(&[Glob::new(pattern)])
    }

    #[test]
    fn dependencies_are_loaded_first() {
        let order = ["kernel/md/mod.ko.xz", "kernel/md/bufio.ko.xz", "kernel/md/verity.ko.xz"];
        assert_eq!(check("md/verity.ko").unwrap(), order);
    }

    #[test]
    fn pattern_without_module_is_an_error() {
        check("md/gone.ko").unwrap_err();
    }
}
