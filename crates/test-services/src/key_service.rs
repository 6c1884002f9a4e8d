use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::Result;
use cluster_types::Service;
use cluster_types::key_service::KeyServicePublicKey;
use key_derivation::{Label, MasterSecret};
use key_service_client::{KeyServiceClient, public_key};
use tempfile::TempDir;
use test_cluster::{TestCluster, free_address};

use crate::ServiceProcess;
use crate::process::command;

/// A key service and the API server that tells it who calls.
pub struct KeyService {
    process: ServiceProcess,
    folder: TempDir,
    address: String,
    master_secret: MasterSecret,
    cluster: TestCluster,
}

impl KeyService {
    /// Starts both, with the rights that the CLI applies and nothing more.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn start(programs: &Path, master_secret: MasterSecret) -> Result<Self> {
        let folder = TempDir::with_prefix("key-service-")?;
        let audit_log = folder.path().join("audit");
        Self::start_in(folder, programs, master_secret, &audit_log).await
    }

    /// The same with an audit log elsewhere.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn start_with_audit_log(programs: &Path, master_secret: MasterSecret, audit_log: &Path) -> Result<Self> {
        Self::start_in(
            TempDir::with_prefix("key-service-")?,
            programs,
            master_secret,
            audit_log,
        )
        .await
    }

    async fn start_in(folder: TempDir, programs: &Path, master_secret: MasterSecret, audit_log: &Path) -> Result<Self> {
        let cluster = TestCluster::start().await?;
        grant_rights(&cluster).await?;
        let secret = folder.path().join("master-secret");
        fs::write(&secret, master_secret.to_json().as_bytes())?;
        let address = free_address()?;
        let mut command = command(programs, Service::Key.name());
        command
            .env("KUBECONFIG", cluster.kubeconfig(Service::Key.name()).await?)
            .arg("--master-secret")
            .arg(secret)
            .arg("--audit-log")
            .arg(audit_log);
        Ok(Self {
            process: ServiceProcess::start(command, &address, folder.path().join("log")).await?,
            folder,
            address,
            master_secret,
            cluster,
        })
    }

    /// The running program.
    #[must_use]
    pub fn process(&self) -> &ServiceProcess {
        &self.process
    }

    /// Asks it to end, as the kubelet does, and waits for that.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.terminate()
    }

    /// The API server.
    #[must_use]
    pub fn cluster(&self) -> &TestCluster {
        &self.cluster
    }

    /// Where the service listens, as `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What its keys are derived from.
    #[must_use]
    pub fn master_secret(&self) -> &MasterSecret {
        &self.master_secret
    }

    /// By which callers know it.
    #[must_use]
    pub fn public_key(&self) -> KeyServicePublicKey {
        public_key(&self.master_secret.kek().derive_array(Label::KeyServiceIdentity))
    }

    /// A client that presents a token of this service account for this audience.
    ///
    /// # Errors
    /// When the API server makes no token.
    pub async fn client(&self, account: &str, audience: Option<&str>) -> Result<KeyServiceClient> {
        self.client_with_token(&self.cluster.token(account, audience).await?)
    }

    /// A client that presents this token.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn client_with_token(&self, token: &str) -> Result<KeyServiceClient> {
        Ok(KeyServiceClient::new(
            &self.address,
            self.public_key(),
            self.token_file(token)?,
        )?)
    }

    /// A file that holds this token for as long as the key service is there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn token_file(&self, token: &str) -> Result<PathBuf> {
        let (_, path) = tempfile::Builder::new()
            .prefix("token-")
            .tempfile_in(self.folder.path())?
            .keep()?;
        fs::write(&path, token)?;
        Ok(path)
    }

    /// Everything it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Everything it recorded so far.
    #[must_use]
    pub fn audit(&self) -> String {
        fs::read_to_string(self.folder.path().join("audit")).unwrap_or_default()
    }
}

async fn grant_rights(cluster: &TestCluster) -> Result<()> {
    let admin = cluster.admin()?;
    for object in deployment::rights(Service::Key) {
        object.apply(&admin).await?;
    }
    let account = Service::Key.name();
    cluster
        .wait_until_allowed(account, "create", "authentication.k8s.io", "tokenreviews")
        .await
}
