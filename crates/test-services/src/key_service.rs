use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::Result;
use cluster_policy::PolicyStore;
use cluster_types::Service;
use key_derivation::{Label, MasterSecret, cluster_id};
use key_service_client::KeyServiceClient;
use node_secrets::{KeyServiceKey, SHARED_FILES};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use test_machines::{Technology, program};

use crate::join_config::{SALT, write};
use crate::process::Listens;
use crate::{JoinConfigExample, ServiceProcess};

/// A key service, as it runs on a control plane.
pub struct KeyService {
    process: ServiceProcess,
    audit_log: PathBuf,
    cluster_ca: CertificateDer<'static>,
    folder: TempDir,
    config: JoinConfigExample,
    master_secret: MasterSecret,
}

impl KeyService {
    /// Starts it with what the bootstrapper leaves for it.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(programs: &Path, technology: &dyn Technology, master_secret: MasterSecret) -> Result<Self> {
        let folder = TempDir::with_prefix("key-service-")?;
        let audit_log = folder.path().join("audit");
        Self::start_in(folder, programs, technology, master_secret, &audit_log).await
    }

    /// The same with an audit log elsewhere.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_with_audit_log(
        programs: &Path,
        technology: &dyn Technology,
        master_secret: MasterSecret,
        audit_log: &Path,
    ) -> Result<Self> {
        let folder = TempDir::with_prefix("key-service-")?;
        Self::start_in(folder, programs, technology, master_secret, audit_log).await
    }

    async fn start_in(
        folder: TempDir,
        programs: &Path,
        technology: &dyn Technology,
        master_secret: MasterSecret,
        audit_log: &Path,
    ) -> Result<Self> {
        let config = cluster_config(technology, &master_secret);
        let secret = master_secret.to_json();
        fs::write(folder.path().join("master-secret"), secret.as_bytes())?;
        PolicyStore::new(folder.path().join("cluster-policy")).write(&config.policy())?;
        let shared_files = folder.path().join("shared-files");
        for name in SHARED_FILES {
            write(&shared_files.join(name), name.as_bytes())?;
        }
        let ca = KeyPair::generate()?;
        let certificate = CertificateParams::default().self_signed(&ca)?;
        write(&shared_files.join("ca.crt"), certificate.pem().as_bytes())?;
        Ok(Self {
            process: run(folder.path(), programs, technology, audit_log).await?,
            audit_log: audit_log.to_owned(),
            cluster_ca: certificate.der().clone(),
            folder,
            config,
            master_secret,
        })
    }

    /// Starts it once more where the one before has left off.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self, programs: &Path, technology: &dyn Technology) -> Result<()> {
        self.process = run(self.folder.path(), programs, technology, &self.audit_log).await?;
        Ok(())
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

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A client, which needs nothing but the socket.
    #[must_use]
    pub fn client(&self) -> KeyServiceClient {
        KeyServiceClient::new(&self.socket())
    }

    /// What its keys are derived from.
    #[must_use]
    pub fn master_secret(&self) -> &MasterSecret {
        &self.master_secret
    }

    /// The configuration of the cluster, with the policy that it was started with.
    #[must_use]
    pub fn config(&self) -> &JoinConfigExample {
        &self.config
    }

    /// The certificate of the cluster's CA.
    #[must_use]
    pub fn cluster_ca(&self) -> &CertificateDer<'static> {
        &self.cluster_ca
    }

    /// Everything it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// What it recorded of nodes that were refused.
    #[must_use]
    pub fn refused(&self) -> String {
        fs::read_to_string(self.folder.path().join("refused")).unwrap_or_default()
    }

    /// Everything it recorded of releases so far.
    #[must_use]
    pub fn audit(&self) -> String {
        fs::read_to_string(&self.audit_log).unwrap_or_default()
    }
}

async fn run(folder: &Path, programs: &Path, technology: &dyn Technology, audit_log: &Path) -> Result<ServiceProcess> {
    let socket = folder.join("socket");
    let mut command = program(technology, programs, Service::Key.name());
    command
        .arg("--socket")
        .arg(&socket)
        .arg("--master-secret")
        .arg(folder.join("master-secret"))
        .arg("--policy-store")
        .arg(folder.join("cluster-policy"))
        .arg("--shared-files")
        .arg(folder.join("shared-files"))
        .arg("--audit-log")
        .arg(audit_log)
        .arg("--refused-log")
        .arg(folder.join("refused"));
    ServiceProcess::start(command, &Listens::Unix(socket), folder.join("log")).await
}

/// The configuration of the cluster with this master secret, whose salt is [`SALT`].
#[must_use]
pub fn cluster_config(technology: &dyn Technology, master_secret: &MasterSecret) -> JoinConfigExample {
    let kek = master_secret.kek();
    JoinConfigExample {
        operator_seed: *kek.derive_array(Label::OperatorIdentity),
        cluster: cluster_id(&kek.measurement_secret(), &SALT),
        key_service_key: KeyServiceKey::of(master_secret).public(),
        ..JoinConfigExample::of(technology)
    }
}
