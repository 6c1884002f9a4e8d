use std::path::Path;

use anyhow::Result;
use cluster_types::Service;
use tempfile::TempDir;
use test_cluster::free_address;
use test_machines::{Machine, Technology, program};

use crate::ServiceProcess;
use crate::process::Listens;

/// A verification service and the machine it runs on.
pub struct VerificationService {
    process: ServiceProcess,
    address: String,
    http_address: String,
    _folder: TempDir,
    _machine: Box<dyn Machine>,
}

impl VerificationService {
    /// Starts both.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn start(programs: &Path, technology: &dyn Technology) -> Result<Self> {
        Self::start_on(technology.boot()?, programs, technology).await
    }

    /// Starts the service on a machine.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_on(machine: Box<dyn Machine>, programs: &Path, technology: &dyn Technology) -> Result<Self> {
        let folder = TempDir::with_prefix("verification-service-")?;
        let (address, http_address) = (free_address()?, free_address()?);
        let mut command = program(technology, programs, Service::Verification.name());
        command
            .args(["--address", &address])
            .args(["--http-address", &http_address])
            .arg("--emulator")
            .arg(machine.emulator());
        Ok(Self {
            process: ServiceProcess::start(command, &Listens::Tcp(address.clone()), folder.path().join("log")).await?,
            address,
            http_address,
            _folder: folder,
            _machine: machine,
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
