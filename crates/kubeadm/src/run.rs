use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use programs::{Call, Programs, RunError};
use secret::secret_bytes;
use tempfile::NamedTempFile;

use crate::api_server::wait_until_healthy;
use crate::folders::replace_file;
use crate::kubelet_authority::KubeletAuthority;
use crate::kubelet_kubeconfig::use_renewed_certificate;
use crate::{
    ApiServer, BootstrapToken, ClusterSettings, Folders, JoinSettings, NodeSettings, StartTimeoutError, render,
};

/// Slow machines need minutes to create a cluster; a node that takes longer than this has failed.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// None of kubeadm's files is longer, in bytes.
const MAX_FILE_LEN: u64 = 1 << 20;

/// Starts the API server and writes the cluster's first objects. The first request waits until the API server answers.
///
/// `kubelet-finalize` is left out because it restarts the kubelet, which would take stock of the node ten times a second once more.
/// `show-join-command` would print a token.
const START_API_SERVER: &str = "--skip-phases=certs,control-plane/controller-manager,control-plane/scheduler,wait-control-plane,\
    kubelet-finalize,show-join-command";
/// Starts the controllers and waits until the whole control plane is healthy. Everything else is done.
const START_CONTROLLERS: &str = "--skip-phases=preflight,certs,kubeconfig,etcd,control-plane/apiserver,kubelet-start,upload-config,\
    upload-certs,mark-control-plane,bootstrap-token,kubelet-finalize,addon,show-join-command";

secret_bytes! {
    /// An administrator's access to the cluster, as YAML.
    pub struct Kubeconfig;
}

/// Runs kubeadm on this node.
pub struct Kubeadm {
    programs: Arc<dyn Programs>,
    api_server: Arc<dyn ApiServer>,
    folders: Folders,
}

/// The cluster could not be created.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file could not be written or read.
    #[error("cannot write or read one of the cluster's files")]
    File(#[from] io::Error),
    /// kubeadm could not be run, took too long or failed.
    #[error("cannot create the cluster")]
    Kubeadm(#[from] RunError),
    /// kubeadm started an API server that does not work.
    #[error(transparent)]
    ApiServer(#[from] StartTimeoutError),
}

/// The node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A file could not be written or read.
    #[error("cannot write or read one of the node's files")]
    File(#[from] io::Error),
    /// kubeadm could not be run, took too long or failed.
    #[error("cannot join the cluster")]
    Kubeadm(#[from] RunError),
}

impl Kubeadm {
    /// Uses the node's own kubeadm, which starts this API server.
    #[must_use]
    pub fn new(programs: Arc<dyn Programs>, api_server: Arc<dyn ApiServer>, folders: Folders) -> Self {
        Self {
            programs,
            api_server,
            folders,
        }
    }

    /// Makes this node the first of a cluster.
    ///
    /// 1. The audit policy, the admission configuration and the patches for the static pods are written.
    /// 2. kubeadm generates the cluster's keys and certificates.
    /// 3. The authority of kubelets' serving certificates is made.
    /// 4. kubeadm starts the API server and writes the cluster's first objects.
    /// 5. Once the API server is healthy, kubeadm starts the controllers. Beside one that is starting, the controller manager would
    ///    take the lead and exit after ten seconds, and its successor would wait until the lease expires.
    /// 6. From its next start on, the kubelet authenticates with the certificate that it renews.
    /// 7. The kubeconfig that no role can revoke (`system:masters`) is removed; the ordinary administrator's is returned.
    ///
    /// It cannot be run a second time after kubeadm has started the control plane.
    ///
    /// # Errors
    /// When kubeadm fails. The error has its exit code and last lines, but no tokens.
    ///
    /// # Cancel safety
    /// Dropping the future ends kubeadm and leaves an unfinished cluster.
    pub async fn init(
        &self,
        cluster: &ClusterSettings,
        node: &NodeSettings,
        now: SystemTime,
    ) -> Result<Kubeconfig, InitError> {
        let token = BootstrapToken::generate();
        let config = self.secret_file(&render::init(cluster, node, &token))?;

        self.write_settings()?;
        self.kubeadm(&["init", "phase", "certs", "all"], &config, &token, &[])
            .await?;
        self.make_kubelet_authority(now)?;
        self.kubeadm(&["init"], &config, &token, &[START_API_SERVER]).await?;
        let ca_cert = fs::read_to_string(self.folders.ca_cert())?;
        wait_until_healthy(&*self.api_server, node.address, &ca_cert).await?;
        self.kubeadm(&["init"], &config, &token, &[START_CONTROLLERS]).await?;
        use_renewed_certificate(&self.folders)?;
        self.take_kubeconfig()
    }

    /// Joins this node to its cluster. It first removes what a failed attempt left, so it can be repeated.
    ///
    /// # Errors
    /// When kubeadm fails. The error has its exit code and last lines, but not the token.
    ///
    /// # Cancel safety
    /// Dropping the future ends kubeadm; joining can be repeated.
    pub async fn join(&self, join: &JoinSettings, node: &NodeSettings) -> Result<(), JoinError> {
        let discovery = self.secret_file(&render::discovery(join))?;
        let config = self.secret_file(&render::join(join, node, discovery.path()))?;
        self.write_settings()?;
        self.remove_leftovers().await?;
        self.kubeadm(&["join"], &config, &join.token, &[]).await?;
        Ok(())
    }

    fn make_kubelet_authority(&self, now: SystemTime) -> io::Result<()> {
        let KubeletAuthority { certificate, key } = KubeletAuthority::generate(now);
        replace_file(&self.folders.path(Folders::KUBELET_CA_KEY), key.as_bytes(), 0o600)?;
        replace_file(
            &self.folders.path(Folders::KUBELET_CA_CERT),
            certificate.as_bytes(),
            0o644,
        )
    }

    fn take_kubeconfig(&self) -> Result<Kubeconfig, InitError> {
        let path = self.folders.kubernetes("admin.conf");
        if fs::metadata(&path)?.len() > MAX_FILE_LEN {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        let kubeconfig = Kubeconfig::from_vec(fs::read(path)?);
        remove_if_there(&self.folders.kubernetes("super-admin.conf"))?;
        Ok(kubeconfig)
    }

    /// The files that kubeadm's configuration names.
    fn write_settings(&self) -> io::Result<()> {
        let write = |path: &Path, text: &str| replace_file(path, text.as_bytes(), 0o644);
        write(&self.folders.path(Folders::AUDIT_POLICY), render::AUDIT_POLICY)?;
        write(&self.folders.path(Folders::ADMISSION), render::ADMISSION)?;
        let patches = self.folders.path(Folders::PATCHES);
        for component in render::STATIC_PODS {
            let patch = patches.join(format!("{component}.yaml"));
            write(&patch, &render::probe_patch(component))?;
        }
        Ok(())
    }

    /// A kubelet that half joined, and its two files, make kubeadm's checks fail.
    async fn remove_leftovers(&self) -> Result<(), JoinError> {
        let leftovers = ["kubelet.conf", "bootstrap-kubelet.conf"].map(|name| self.folders.kubernetes(name));
        if leftovers.iter().any(|file| file.exists()) {
            self.programs
                .run(&Call::new("systemctl").args(["stop", "kubelet.service"]))
                .await?;
        }
        for file in &leftovers {
            remove_if_there(file)?;
        }
        Ok(())
    }

    async fn kubeadm(
        &self,
        command: &[&str],
        config: &NamedTempFile,
        token: &BootstrapToken,
        flags: &[&str],
    ) -> Result<(), RunError> {
        let call = Call::new("kubeadm")
            .args(command.iter().copied())
            .arg("--config")
            .arg(config.path().display().to_string())
            .args(flags.iter().copied())
            .within(LIMIT)
            .redact(token.expose());
        self.programs.run(&call).await.map(drop)
    }

    /// A file of mode 0600 that is removed when the value is dropped.
    fn secret_file(&self, text: &str) -> io::Result<NamedTempFile> {
        let folder = self.folders.temporary();
        fs::create_dir_all(&folder)?;
        let mut file = tempfile::Builder::new()
            .prefix("kubeadm-")
            .suffix(".yaml")
            .tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
        Ok(file)
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex;

    use cluster_types::NodeRole;
    use programs::{Output, Running};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use tempfile::TempDir;

    use super::*;
    use crate::Checking;
    use crate::render::tests::{cluster, join_settings, node};

    /// Does to the files what kubeadm would do, and remembers how it was called.
    struct FakeKubeadm {
        root: TempDir,
        calls: Mutex<Vec<String>>,
        configs: Mutex<Vec<String>>,
        fails_with: Option<&'static str>,
    }

    impl FakeKubeadm {
        fn new(fails_with: Option<&'static str>) -> Arc<Self> {
            Arc::new(Self {
                root: TempDir::new().unwrap(),
                calls: Mutex::default(),
                configs: Mutex::default(),
                fails_with,
            })
        }

        fn act(&self, call: &Call) {
            let kubernetes = self.root.path().join("etc/kubernetes");
            fs::create_dir_all(kubernetes.join("pki")).unwrap();
            if call.arguments().contains(&"certs".to_owned()) {
                let key = KeyPair::generate().unwrap();
                let mut ca = CertificateParams::default();
                ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                fs::write(kubernetes.join("pki/ca.crt"), ca.self_signed(&key).unwrap().pem()).unwrap();
                fs::write(kubernetes.join("pki/ca.key"), key.serialize_pem()).unwrap();
            } else {
                fs::write(kubernetes.join("admin.conf"), "kind: Config").unwrap();
                fs::write(kubernetes.join("super-admin.conf"), "kind: Config").unwrap();
                fs::write(
                    kubernetes.join("kubelet.conf"),
                    "users: [{user: {client-key-data: S0VZ}}]",
                )
                .unwrap();
                // What the kubelet does that kubeadm starts.
                let stored = self.root.path().join("var/lib/kubelet/pki");
                fs::create_dir_all(&stored).unwrap();
                fs::write(stored.join("kubelet-client-current.pem"), "").unwrap();
            }
        }
    }

    impl Programs for FakeKubeadm {
        fn run<'a>(&'a self, call: &'a Call) -> Running<'a> {
            Box::pin(async move {
                if let Some(config) = call.arguments().iter().find(|argument| argument.ends_with(".yaml")) {
                    let mode = fs::metadata(config).unwrap().permissions().mode();
                    assert_eq!(mode & 0o777, 0o600);
                    self.configs.lock().unwrap().push(config.clone());
                }
                let line = format!("{call:?}");
                let line = line.split(' ').filter(|word| !word.ends_with(".yaml"));
                self.calls.lock().unwrap().push(line.collect::<Vec<_>>().join(" "));
                self.act(call);
                match self.fails_with {
                    None => Ok(Output::default()),
                    Some(message) => Err(call.failed(
                        Some(1),
                        &Output {
                            stdout: Vec::new(),
                            stderr: message.into(),
                        },
                    )),
                }
            })
        }
    }

    /// Healthy, and remembers when it was asked.
    impl ApiServer for FakeKubeadm {
        fn check<'a>(&'a self, address: Ipv4Addr, ca_cert_pem: &'a str) -> Checking<'a> {
            assert!(ca_cert_pem.starts_with("-----BEGIN CERTIFICATE-----"));
            self.calls.lock().unwrap().push(format!("{address} is healthy"));
            Box::pin(async { Ok(()) })
        }
    }

    fn kubeadm(fake: &Arc<FakeKubeadm>) -> Kubeadm {
        Kubeadm::new(fake.clone(), fake.clone(), Folders::below(fake.root.path()))
    }

    fn assert_no_config_left(fake: &FakeKubeadm) {
        let configs = fake.configs.lock().unwrap();
        assert!(!configs.is_empty());
        assert!(configs.iter().all(|path| !Path::new(path).exists()));
    }

    #[tokio::test]
    async fn init_returns_the_administrators_access() {
        let fake = FakeKubeadm::new(None);
        let kubeconfig = kubeadm(&fake)
            .init(&cluster(), &node(), SystemTime::UNIX_EPOCH)
            .await
            .unwrap();
        assert_eq!(kubeconfig.expose(), b"kind: Config");
        assert_eq!(
            *fake.calls.lock().unwrap(),
            [
                "kubeadm init phase certs all --config",
                "kubeadm init --config --skip-phases=certs,control-plane/controller-manager,control-plane/scheduler,\
                 wait-control-plane,kubelet-finalize,show-join-command",
                "10.42.1.100 is healthy",
                "kubeadm init --config --skip-phases=preflight,certs,kubeconfig,etcd,control-plane/apiserver,kubelet-start,\
                 upload-config,upload-certs,mark-control-plane,bootstrap-token,kubelet-finalize,addon,show-join-command",
            ]
        );
        let file = |name: &str| fake.root.path().join(name);
        assert!(!file("etc/kubernetes/super-admin.conf").exists());
        let kubelet = fs::read_to_string(file("etc/kubernetes/kubelet.conf")).unwrap();
        assert!(kubelet.contains("kubelet-client-current.pem") && !kubelet.contains("S0VZ"));
        assert!(file("etc/kubernetes/audit-policy.yaml").exists());
        assert!(file("etc/kubernetes/admission.yaml").exists());
        assert!(file("etc/kubernetes/patches/kube-apiserver.yaml").exists());
        let key = fs::metadata(file("etc/kubernetes/pki/kubelet-ca.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        assert_no_config_left(&fake);
    }

    #[tokio::test]
    async fn a_failed_join_says_why_without_the_token() {
        let fake = FakeKubeadm::new(Some("discovery with token abcdef.0123456789abcdef failed"));
        let error = kubeadm(&fake)
            .join(&join_settings(NodeRole::Worker), &node())
            .await
            .unwrap_err();
        let JoinError::Kubeadm(error) = error else {
            panic!("{error}")
        };
        assert_eq!(
            error.to_string(),
            "kubeadm failed with exit code 1: discovery with token (redacted) failed"
        );
        assert_no_config_left(&fake);
    }

    #[tokio::test]
    async fn a_second_join_begins_afresh() {
        let fake = FakeKubeadm::new(None);
        let leftover = fake.root.path().join("etc/kubernetes/bootstrap-kubelet.conf");
        fs::create_dir_all(leftover.parent().unwrap()).unwrap();
        fs::write(&leftover, "half").unwrap();
        kubeadm(&fake)
            .join(&join_settings(NodeRole::Worker), &node())
            .await
            .unwrap();
        assert_eq!(
            *fake.calls.lock().unwrap(),
            ["systemctl stop kubelet.service", "kubeadm join --config"]
        );
        assert!(!leftover.exists());
    }
}
