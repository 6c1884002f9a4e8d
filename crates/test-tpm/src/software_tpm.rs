use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// How long swtpm may take to make its socket.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running swtpm, with fresh seeds: two of them are two machines.
pub struct SoftwareTpm {
    process: Child,
    folder: TempDir,
}

impl SoftwareTpm {
    /// Starts a TPM that has been powered on and received `TPM2_Startup(CLEAR)`.
    ///
    /// # Errors
    /// When swtpm is not installed or does not come up.
    pub fn start() -> Result<Self> {
        let folder = TempDir::with_prefix("tpm-").context("making a folder for the TPM's state")?;
        let socket = folder.path().join("socket");
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", folder.path().display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .context("starting swtpm (Debian package swtpm)")?;
        let mut tpm = Self { process, folder };
        tpm.wait_for_socket()?;
        Ok(tpm)
    }

    /// The socket that speaks raw TPM 2.0 frames. It serves one connection at a time.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let socket = self.socket();
        let started = Instant::now();
        while !is_listening(&socket)? {
            if let Some(status) = self.process.try_wait()? {
                bail!("swtpm ended with {status}");
            }
            if started.elapsed() > START_TIMEOUT {
                bail!("swtpm made no socket within {START_TIMEOUT:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Whether a connection would be accepted. The file appears a moment earlier, and trying would use up the one connection
/// that swtpm serves. The fourth column is the socket's flags, `__SO_ACCEPTCON` is 0x10000 (Linux, `net/unix/af_unix.c`).
fn is_listening(socket: &Path) -> Result<bool> {
    let sockets = std::fs::read_to_string("/proc/net/unix").context("reading the list of Unix sockets")?;
    let path = socket.display().to_string();
    Ok(sockets
        .lines()
        .filter(|line| line.ends_with(&path))
        .any(|line| line.split_whitespace().nth(3) == Some("00010000")))
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        // swtpm ends by itself when its only client goes; either way it must be reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
