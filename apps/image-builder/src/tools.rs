//! Programs from the locked Debian packages, run without installing them and without a chroot.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The folder to which the tools' packages were unpacked.
pub(crate) struct Tools(PathBuf);

impl Tools {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self(root)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// A command that runs one of the tools with the tools' own C library, whatever the build machine has.
    pub(crate) fn command(&self, program: &str) -> Command {
        let libraries = self.0.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(self.0.join("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(libraries)
            .arg(self.0.join(program))
            .env_clear()
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("SOURCE_DATE_EPOCH", "0")
            .stdin(Stdio::null());
        command
    }

    /// The same for a Python program.
    pub(crate) fn python(&self, program: &str) -> Command {
        let mut command = self.command("usr/bin/python3");
        command
            .env("PYTHONHOME", self.0.join("usr"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONHASHSEED", "0")
            .arg(self.0.join(program));
        command
    }
}

/// Runs a command to its end and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, said.trim());
    }
    Ok(output.stdout)
}
