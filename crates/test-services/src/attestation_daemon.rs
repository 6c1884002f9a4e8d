use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;
use test_machines::{Machine, Technology, program};

use crate::ServiceProcess;
use crate::process::Listens;

/// The attestation daemon of a machine.
pub struct AttestationDaemon {
    process: ServiceProcess,
    folder: TempDir,
}

impl AttestationDaemon {
    /// Starts it. Its sockets are this process's user's.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(programs: &Path, technology: &dyn Technology, machine: &dyn Machine) -> Result<Self> {
        let folder = TempDir::with_prefix("attestation-daemon-")?;
        let user = fs::metadata("/proc/self")?.uid().to_string();
        let (join, verification) = (join_socket(&folder), verification_socket(&folder));
        let mut command = program(technology, programs, "attestation-daemon");
        command
            .args(["--join-user", &user, "--verification-user", &user])
            .arg("--join-socket")
            .arg(join)
            .arg("--verification-socket")
            .arg(&verification)
            .arg("--emulator")
            .arg(machine.emulator());
        // The last one that it makes.
        let listens = Listens::Unix(verification);
        let log = folder.path().join("log");
        let process = ServiceProcess::start_program(command, &listens, log).await?;
        Ok(Self { process, folder })
    }

    /// Where the join service asks.
    #[must_use]
    pub fn join_socket(&self) -> PathBuf {
        join_socket(&self.folder)
    }

    /// Where the verification service asks.
    #[must_use]
    pub fn verification_socket(&self) -> PathBuf {
        verification_socket(&self.folder)
    }

    /// The running program.
    #[must_use]
    pub fn process(&self) -> &ServiceProcess {
        &self.process
    }
}

fn join_socket(folder: &TempDir) -> PathBuf {
    folder.path().join("join/socket")
}

fn verification_socket(folder: &TempDir) -> PathBuf {
    folder.path().join("verification/socket")
}
