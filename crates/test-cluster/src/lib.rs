//! A real etcd and kube-apiserver for one test.
//!
//! The binaries are upstream's, unmodified. Their folder is named by `CONSTELLATION_KUBERNETES_BINARIES`; `make test`
//! builds and sets it. Nothing a release contains depends on this crate; `xtask tidy` checks that.

mod pki;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Config};
use kubeadm::{ADMISSION, ADMISSION_PLUGINS};
use tempfile::TempDir;

pub use pki::Pki;

/// Both servers together need a few seconds; a loaded machine may take much longer.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// A control plane without nodes, gone on drop.
pub struct TestCluster {
    apiserver: Child,
    etcd: Child,
    folder: TempDir,
    port: u16,
    pki: Pki,
}

impl TestCluster {
    /// Starts both servers and waits until the API answers.
    ///
    /// # Errors
    /// When the binaries are missing or a server does not come up.
    pub async fn start() -> Result<Self> {
        let binaries = binaries()?;
        let folder = TempDir::with_prefix("test-cluster-")?;
        let pki = Pki::generate(folder.path())?;
        std::fs::write(folder.path().join("admission.yaml"), ADMISSION)?;
        let (etcd_port, peer_port, port) = (free_port()?, free_port()?, free_port()?);
        let etcd = start_etcd(&binaries, folder.path(), etcd_port, peer_port)?;
        let apiserver = start_apiserver(&binaries, folder.path(), etcd_port, port)?;
        let mut cluster = Self {
            apiserver,
            etcd,
            folder,
            port,
            pki,
        };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// The cluster's own certificate authority.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// `host:port` of the API.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A client that may do everything.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub fn admin(&self) -> Result<Client> {
        Ok(Client::try_from(self.admin_config()?)?)
    }

    /// The same that hears each refusal at once: others ask again up to fifteen times when the API server says that it is busy.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub fn admin_without_retries(&self) -> Result<Client> {
        let mut config = self.admin_config()?;
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }

    /// A client that may do what somebody else may do.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub fn impersonate(&self, user: &str, groups: &[&str]) -> Result<Client> {
        let mut config = self.admin_config()?;
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(groups.iter().map(|&group| group.to_owned()).collect());
        Ok(Client::try_from(config)?)
    }

    /// A client that presents this token.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub fn bearer(&self, token: String) -> Result<Client> {
        let mut config = self.config()?;
        config.auth_info.token = Some(token.into());
        Ok(Client::try_from(config)?)
    }

    /// A client that is one service account of `kube-system`, with only the rights that it was given.
    ///
    /// # Errors
    /// When the API refuses the token.
    pub async fn service_account(&self, name: &str) -> Result<Client> {
        self.bearer(self.token(name).await?)
    }

    /// A token of a service account of `kube-system`, made on demand.
    async fn token(&self, name: &str) -> Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin()?, "kube-system");
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(name.into()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        if accounts.get_opt(name).await?.is_none() {
            accounts.create(&PostParams::default(), &account).await?;
        }
        let request = TokenRequest::default();
        let response = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await?;
        Ok(response.status.context("token request without a status")?.token)
    }

    /// A kubeconfig file by which a program acts as a service account of `kube-system`.
    ///
    /// # Errors
    /// When the API refuses the token.
    pub async fn kubeconfig(&self, service_account: &str) -> Result<PathBuf> {
        let token = self.token(service_account).await?;
        let path = self.folder.path().join(format!("{service_account}.conf"));
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{}", self.address()),
                "certificate-authority": self.folder.path().join("ca.crt"),
            }}],
            "users": [{"name": "account", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "account"}}],
            "current-context": "test",
        });
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// Waits until the API server knows of a right that a service account of `kube-system` was given there or everywhere:
    /// it takes a moment after the objects were applied.
    ///
    /// # Errors
    /// When it does not within the time that servers have to start.
    pub async fn wait_until_allowed(&self, account: &str, verb: &str, group: &str, resource: &str) -> Result<()> {
        let reviews: Api<SubjectAccessReview> = Api::all(self.admin()?);
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:kube-system:{account}")),
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some("kube-system".into()),
                    verb: Some(verb.into()),
                    group: Some(group.into()),
                    resource: Some(resource.into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let started = Instant::now();
        while started.elapsed() < START_TIMEOUT {
            let reviewed = reviews.create(&PostParams::default(), &review).await?;
            if reviewed.status.is_some_and(|status| status.allowed) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("{account} may not {verb} {resource} after {START_TIMEOUT:?}")
    }

    fn admin_config(&self) -> Result<Config> {
        let mut config = self.config()?;
        config.auth_info.client_certificate_data = Some(self.pki.admin_certificate_base64());
        config.auth_info.client_key_data = Some(self.pki.admin_key_base64().into());
        Ok(config)
    }

    fn config(&self) -> Result<Config> {
        // kube builds its own TLS configuration and asks for the process's provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = Config::new(format!("https://{}", self.address()).parse()?);
        config.root_cert = Some(vec![self.pki.ca_certificate_der()]);
        Ok(config)
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let client = self.admin()?;
        let started = Instant::now();
        loop {
            // Readiness includes the default roles and namespaces.
            let request = http::Request::get("/readyz").body(Vec::new())?;
            let last = match client.request_text(request).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            for (name, child) in [("etcd", &mut self.etcd), ("kube-apiserver", &mut self.apiserver)] {
                if let Some(status) = child.try_wait()? {
                    bail!(
                        "{name} ended with {status}; its log:\n{}",
                        tail(&self.folder.path().join(name))
                    );
                }
            }
            if started.elapsed() > START_TIMEOUT {
                bail!("the API did not answer within {START_TIMEOUT:?}: {last}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        for child in [&mut self.apiserver, &mut self.etcd] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn binaries() -> Result<PathBuf> {
    let folder = std::env::var_os("CONSTELLATION_KUBERNETES_BINARIES").context(
        "CONSTELLATION_KUBERNETES_BINARIES is not set: run `make test`, which builds etcd and kube-apiserver and sets it",
    )?;
    Ok(folder.into())
}

fn start_etcd(binaries: &Path, folder: &Path, port: u16, peer_port: u16) -> Result<Child> {
    let client = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let mut command = Command::new(binaries.join("etcd"));
    command
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .arg("--initial-cluster")
        .arg(format!("default={peer}"))
        .arg("--data-dir")
        .arg(folder.join("etcd-data"))
        // Tests do not survive a power cut, so nothing needs to reach the disk.
        .arg("--unsafe-no-fsync");
    spawn(command, folder, "etcd")
}

fn start_apiserver(binaries: &Path, folder: &Path, etcd_port: u16, port: u16) -> Result<Child> {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut command = Command::new(binaries.join("kube-apiserver"));
    command
        .arg(format!("--etcd-servers=http://127.0.0.1:{etcd_port}"))
        .arg("--bind-address=127.0.0.1")
        .arg(format!("--secure-port={port}"))
        .arg("--service-cluster-ip-range=10.96.0.0/12")
        .arg(format!("--client-ca-file={}", file("ca.crt")))
        .arg(format!("--tls-cert-file={}", file("apiserver.crt")))
        .arg(format!("--tls-private-key-file={}", file("apiserver.key")))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(format!("--service-account-key-file={}", file("sa.pub")))
        .arg(format!("--service-account-signing-key-file={}", file("sa.key")))
        .arg("--authorization-mode=RBAC")
        .arg(format!("--enable-admission-plugins={ADMISSION_PLUGINS}"))
        .arg(format!("--admission-control-config-file={}", file("admission.yaml")))
        // As kubeadm sets it: pods of tests are privileged.
        .arg("--allow-privileged=true")
        .arg(format!("--cert-dir={}", folder.display()));
    spawn(command, folder, "kube-apiserver")
}

fn spawn(mut command: Command, folder: &Path, name: &str) -> Result<Child> {
    let log = std::fs::File::create(folder.join(name))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))
}

/// An address on loopback for a server that cannot be told to choose one itself.
///
/// # Errors
/// When no port is free.
pub fn free_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
