use std::path::Path;
use std::process::Command;

use anyhow::Result;
use cluster_types::Service;
use tempfile::TempDir;
use test_cluster::free_address;
use test_machines::{Machine, Technology};

use crate::process::Listens;
use crate::{AttestationDaemon, ServiceProcess};

/// A verification service, the attestation daemon beside it, and the machine they run on.
pub struct VerificationService {
    process: ServiceProcess,
    address: String,
    http_address: String,
    _folder: TempDir,
    _attestation: AttestationDaemon,
    _machine: Box<dyn Machine>,
}

impl VerificationService {
    /// Starts all of them.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn start(programs: &Path, technology: &dyn Technology) -> Result<Self> {
        Self::start_on(technology.boot()?, programs, technology).await
    }

    /// Starts daemon and service on a machine.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_on(machine: Box<dyn Machine>, programs: &Path, technology: &dyn Technology) -> Result<Self> {
        let folder = TempDir::with_prefix("verification-service-")?;
        let (address, http_address) = (free_address()?, free_address()?);
        let attestation = AttestationDaemon::start(programs, technology, &*machine).await?;
        let mut command = Command::new(programs.join(Service::Verification.name()));
        command
            .args(["--address", &address])
            .args(["--http-address", &http_address])
            .arg("--attestation-socket")
            .arg(attestation.verification_socket());
        Ok(Self {
            process: ServiceProcess::start(command, &Listens::Tcp(address.clone()), folder.path().join("log")).await?,
            address,
            http_address,
            _folder: folder,
            _attestation: attestation,
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
