//! The processes of a machine.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The longest anything may take. A boot takes a minute on two idle cores; a busy machine must not fail a test.
pub(crate) const CONDITION_LIMIT: Duration = Duration::from_secs(600);
/// Between two looks at a condition.
pub(crate) const INTERVAL: Duration = Duration::from_millis(200);

/// A running process. Dropping it ends it.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).spawn().map(Self)
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a software TPM with its state and socket in this folder. It ends with the QEMU it serves.
pub(crate) fn start_swtpm(folder: &Path) -> Result<Process> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("swtpm.log"))?;
    let mut command = Command::new("swtpm");
    command
        .args(["socket", "--tpm2", "--terminate", "--flags", "startup-clear"])
        .arg("--tpmstate")
        .arg(format!("dir={}", folder.join("tpm").display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", folder.join("tpm.sock").display()))
        .stdout(log.try_clone()?)
        .stderr(log);
    let mut swtpm = Process::start(&mut command).context("starting swtpm (Debian package swtpm)")?;
    let start = Instant::now();
    while !folder.join("tpm.sock").exists() {
        if let Some(status) = swtpm.ended()? {
            bail!("swtpm ended with {status}");
        }
        ensure!(
            start.elapsed() < CONDITION_LIMIT,
            "swtpm made no socket within {CONDITION_LIMIT:?}"
        );
        thread::sleep(INTERVAL);
    }
    Ok(swtpm)
}
