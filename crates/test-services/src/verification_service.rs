use std::path::Path;

use anyhow::Result;
use cluster_types::Service;
use tempfile::TempDir;
use test_cluster::free_address;
use test_tpm::SoftwareTpm;

use crate::ServiceProcess;
use crate::process::command;

/// A verification service and the TPM of the machine it runs on.
pub struct VerificationService {
    process: ServiceProcess,
    address: String,
    http_address: String,
    _folder: TempDir,
    _tpm: SoftwareTpm,
}

impl VerificationService {
    /// Starts both.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn start(programs: &Path) -> Result<Self> {
        let (tpm, folder) = (SoftwareTpm::start()?, TempDir::with_prefix("verification-service-")?);
        let (address, http_address) = (free_address()?, free_address()?);
        let mut command = command(programs, Service::Verification.name());
        command
            .args(["--http-address", &http_address])
            .arg("--tpm-socket")
            .arg(tpm.socket());
        Ok(Self {
            process: ServiceProcess::start(command, &address, folder.path().join("log")).await?,
            address,
            http_address,
            _folder: folder,
            _tpm: tpm,
        })
    }

    /// The running program.
    #[must_use]
    pub fn process(&self) -> &ServiceProcess {
        &self.process
    }

    /// `host:port` of gRPC, inside attested TLS.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `host:port` of HTTP.
    #[must_use]
    pub fn http_address(&self) -> &str {
        &self.http_address
    }
}
