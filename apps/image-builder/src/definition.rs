//! The folder `images/`: what an image is made of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::glob::Glob;

/// The lists of `images/`, read.
pub(crate) struct Definition {
    pub(crate) folder: PathBuf,
    pub(crate) node_packages: Vec<String>,
    pub(crate) tools_packages: Vec<String>,
    pub(crate) keep: Vec<Glob>,
    pub(crate) modules: Vec<Glob>,
    pub(crate) modules_initramfs: Vec<Glob>,
    pub(crate) modules_early: Vec<Glob>,
    pub(crate) kernel_command_line: Vec<String>,
}

impl Definition {
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let lines = |name| load_lines(&folder.join(name));
        let globs = |name| Ok::<_, anyhow::Error>(lines(name)?.iter().map(|line| Glob::new(line)).collect());
        Ok(Self {
            folder: folder.to_owned(),
            node_packages: lines("node.packages")?,
            tools_packages: lines("tools.packages")?,
            keep: globs("root.keep")?,
            modules: globs("modules")?,
            modules_initramfs: globs("modules.initramfs")?,
            modules_early: globs("modules.early")?,
            kernel_command_line: lines("kernel-command-line")?,
        })
    }

    /// The folder whose files are copied over those of the packages.
    pub(crate) fn overlay(&self) -> PathBuf {
        self.folder.join("root")
    }

    pub(crate) fn lock_file(&self) -> PathBuf {
        self.folder.join("packages.lock")
    }
}

/// The lines that are neither empty nor comments.
fn load_lines(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim);
    Ok(lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect())
}
