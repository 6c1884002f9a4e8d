//! A node in this process: a machine of any technology, a folder instead of a root, and programs that only pretend.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use attestation::ExpectedMembership;
use attested_tls::PeerPolicy;
use cloud_metadata::{Answer, ApiEndpoint, CloudMetadata, InitSecretHash, Instance, NodeNetwork};
use cluster_types::{DiskUuid, NodeRole, OperatorPublicKey};
use digest::Digest;
use grpc_api::components::Component;
use kubeadm::{ApiServer, Checking, Kubeconfig};
use node_secrets::SHARED_FILES;
use polling::PollError;
use programs::{Call, Output, Programs, Running};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use secret::StateDiskKey;
use tempfile::TempDir;
use test_machines::{Machine, Technology};
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tracing::subscriber::DefaultGuard;

use crate::deploy::{DeployError, Deployer, Deploying, Deployment};
use crate::disk::{StateDisk, StateDiskError};
use crate::files::NodeFiles;
use crate::lock::NodeLock;
use crate::node::{Hints, ThisNode, platform_mirror};
use crate::resume::{MemberNode, ResumeError, resume};
use crate::run::{NodeError, bootstrap};
use crate::tests::operator;

pub(crate) const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";
pub(crate) const INIT_SECRET: &[u8] = b"canary init secret";
pub(crate) const KUBECONFIG: &str = "canary kubeconfig";
pub(crate) const JOURNAL: &str = "the node's journal";
const KUBELET: &[u8] = b"kubelet";

pub(crate) struct TestNode {
    pub(crate) node: Arc<ThisNode>,
    pub(crate) programs: Arc<FakePrograms>,
    pub(crate) disk: Arc<FakeDisk>,
    pub(crate) folder: TempDir,
    pub(crate) technology: &'static dyn Technology,
    // After the attester, which still speaks to it when it is dropped.
    _machine: Box<dyn Machine>,
}

impl TestNode {
    pub(crate) fn new(technology: &'static dyn Technology, role: NodeRole) -> Self {
        Self::failing(technology, role, None)
    }

    /// A node on which this program fails.
    pub(crate) fn failing(technology: &'static dyn Technology, role: NodeRole, program: Option<&'static str>) -> Self {
        Self::reaching(technology, role, program, Arc::new(OnceLock::new()))
    }

    /// A node on whose network every join service is the one that listens here, once it does.
    pub(crate) fn reaching(
        technology: &'static dyn Technology,
        role: NodeRole,
        program: Option<&'static str>,
        join_service: Arc<OnceLock<SocketAddr>>,
    ) -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let folder = TempDir::new().unwrap();
        let machine = technology.power_on().unwrap();
        let attester = machine.attester().unwrap();
        let programs = Arc::new(FakePrograms {
            root: folder.path().to_owned(),
            calls: Mutex::default(),
            failing: program,
        });
        let disk = Arc::new(FakeDisk::default());
        let node = ThisNode {
            hints: hints(role),
            metadata: Arc::new(FakeMetadata {
                peers: vec![instance(NodeRole::ControlPlane, 100)],
                mirror: serve_mirror(),
            }),
            lock: NodeLock::new(attester.clone()),
            attester,
            variants: technology.variants(),
            disk: disk.clone(),
            deployer: programs.clone(),
            files: NodeFiles::new(folder.path(), |_| fs::metadata("/proc/self").unwrap().uid()),
            programs: programs.clone(),
            api_server: programs.clone(),
            own_images: OnceCell::new(),
            reach: Box::new(move |_| join_service.get().copied().unwrap_or(nowhere)),
        };
        Self {
            node: Arc::new(node),
            programs,
            disk,
            folder,
            technology,
            _machine: machine,
        }
    }

    /// Another control plane is. A node does not ask itself for a ticket.
    pub(crate) fn is_not_the_api_server(&mut self) {
        let host = Ipv4Addr::new(10, 42, 1, 99).try_into().unwrap();
        Arc::get_mut(&mut self.node).unwrap().hints.api_endpoint.host = host;
    }

    /// Runs the bootstrapper and gives the address of its init server.
    pub(crate) async fn start(&self) -> (SocketAddr, JoinHandle<Result<(), NodeError>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (address, tokio::spawn(bootstrap(self.node.clone(), listener)))
    }

    /// A later boot, in which the membership is measured and the disk is open.
    pub(crate) async fn resume(&self) -> Result<(), ResumeError> {
        let member = MemberNode {
            attester: &*self.node.attester,
            files: &self.node.files,
            programs: &self.node.programs,
            deployer: &*self.programs,
            platform_mirror: platform_mirror(&*self.node.metadata),
        };
        resume(&member).await
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Accepts nodes of this node's image that stand in this relation to a cluster.
    pub(crate) fn accepts(&self, membership: ExpectedMembership) -> PeerPolicy {
        PeerPolicy::Attested(Arc::new(self.node.own_image(membership).unwrap()))
    }
}

pub(crate) fn instance(role: NodeRole, host: u8) -> Instance {
    Instance {
        name: format!("node-{host}").parse().unwrap(),
        provider_id: format!("qemu:///node-{host}"),
        role,
        address: Ipv4Addr::new(10, 42, 1, host).try_into().unwrap(),
        role_grant: None,
    }
}

/// Of another platform than the local one: nothing of it is in the program.
const NETWORK: &str = r#"{"cidr":"10.42.1.0/24","interface":"private0","nameServers":["192.0.2.53","192.0.2.54"]}"#;

fn hints(role: NodeRole) -> Hints {
    let host = match role {
        NodeRole::ControlPlane => 100,
        NodeRole::Worker => 150,
    };
    Hints {
        this_node: instance(role, host),
        network: serde_json::from_str(NETWORK).unwrap(),
        api_endpoint: ApiEndpoint {
            host: Ipv4Addr::new(10, 42, 1, 100).try_into().unwrap(),
            port: 6443,
        },
        init_secret_hash: InitSecretHash::new(*Digest::of(INIT_SECRET).as_bytes()),
        operator: operator(),
    }
}

/// What the mirror serves, as a request or a ticket lists it.
pub(crate) fn components() -> Vec<Component> {
    vec![Component {
        url: "bin/kubelet".into(),
        hash: digest::oci::format(&Digest::of(KUBELET)),
        install_path: "/run/state/bin/kubelet".into(),
        extract: false,
    }]
}

fn serve_mirror() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let length = KUBELET.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            );
            let _ = stream.write_all(KUBELET);
        }
    });
    format!("http://{address}/mirror")
}

struct FakeMetadata {
    peers: Vec<Instance>,
    mirror: String,
}

impl CloudMetadata for FakeMetadata {
    fn this_node(&self) -> Answer<'_, Instance> {
        unreachable!("hints are fetched before")
    }

    fn peers(&self) -> Answer<'_, Vec<Instance>> {
        Box::pin(async { Ok(self.peers.clone()) })
    }

    fn api_endpoint(&self) -> Answer<'_, ApiEndpoint> {
        unreachable!("hints are fetched before")
    }

    fn network(&self) -> Answer<'_, NodeNetwork> {
        unreachable!("hints are fetched before")
    }

    fn init_secret_hash(&self) -> Answer<'_, InitSecretHash> {
        unreachable!("hints are fetched before")
    }

    fn operator_key(&self) -> Answer<'_, OperatorPublicKey> {
        unreachable!("hints are fetched before")
    }

    fn mirror(&self) -> String {
        self.mirror.clone()
    }
}

#[derive(Default)]
pub(crate) struct FakeDisk(Mutex<Vec<(DiskUuid, [u8; 32])>>);

impl FakeDisk {
    /// Every key the disk was given.
    pub(crate) fn keys(&self) -> Vec<[u8; 32]> {
        self.0.lock().unwrap().iter().map(|(_, key)| *key).collect()
    }
}

impl StateDisk for FakeDisk {
    fn uuid(&self) -> Result<DiskUuid, StateDiskError> {
        let given = self.0.lock().unwrap().last().map(|(disk, _)| *disk);
        Ok(given.unwrap_or_else(|| DISK.parse().unwrap()))
    }

    fn rekey(&self, disk: DiskUuid, key: &StateDiskKey) -> Result<(), StateDiskError> {
        self.0.lock().unwrap().push((disk, *key.expose()));
        Ok(())
    }
}

/// Does what the programs would do to the node's files.
pub(crate) struct FakePrograms {
    root: PathBuf,
    calls: Mutex<Vec<String>>,
    failing: Option<&'static str>,
}

impl FakePrograms {
    /// Every call in order: program and first argument.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn act(&self, call: &Call) -> Vec<u8> {
        let kubernetes = self.root.join("etc/kubernetes");
        let arguments: Vec<&str> = call.arguments().iter().map(String::as_str).collect();
        match (call.program(), arguments.as_slice()) {
            ("kubeadm", ["init", "phase", "certs", ..]) => {
                for name in SHARED_FILES {
                    let file = kubernetes.join("pki").join(name);
                    fs::create_dir_all(file.parent().unwrap()).unwrap();
                    fs::write(file, name).unwrap();
                }
                let key = KeyPair::generate().unwrap();
                let mut ca = CertificateParams::default();
                ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                fs::write(kubernetes.join("pki/ca.crt"), ca.self_signed(&key).unwrap().pem()).unwrap();
                fs::write(kubernetes.join("pki/ca.key"), key.serialize_pem()).unwrap();
            }
            ("kubeadm", ["init", ..]) => {
                fs::write(kubernetes.join("admin.conf"), KUBECONFIG).unwrap();
                fs::write(kubernetes.join("kubelet.conf"), "users: [{user: {}}]").unwrap();
                // The kubelet, which kubeadm starts, stores its certificate.
                let stored = self.root.join("var/lib/kubelet/pki");
                fs::create_dir_all(&stored).unwrap();
                fs::write(stored.join("kubelet-client-current.pem"), "").unwrap();
            }
            ("journalctl", _) => return JOURNAL.into(),
            _ => {}
        }
        Vec::new()
    }
}

impl Programs for FakePrograms {
    fn run<'a>(&'a self, call: &'a Call) -> Running<'a> {
        let first = call.arguments().first().cloned().unwrap_or_default();
        self.calls.lock().unwrap().push(format!("{} {first}", call.program()));
        let stdout = self.act(call);
        let stderr = format!("{} is broken", call.program()).into_bytes();
        let result = if self.failing == Some(call.program()) {
            Err(call.failed(Some(1), &Output { stdout, stderr }))
        } else {
            Ok(Output {
                stdout,
                stderr: Vec::new(),
            })
        };
        Box::pin(async { result })
    }
}

/// Healthy at once.
impl ApiServer for FakePrograms {
    fn check<'a>(&'a self, _: Ipv4Addr, _: &'a str) -> Checking<'a> {
        Box::pin(async { Ok(()) })
    }
}

/// Takes everything, unless it is broken.
impl Deployer for FakePrograms {
    fn deploy<'a>(&'a self, kubeconfig: &'a Kubeconfig, deployment: &'a Deployment) -> Deploying<'a> {
        assert_eq!(kubeconfig.expose(), KUBECONFIG.as_bytes());
        let start = if deployment.start.is_some() { "start" } else { "again" };
        self.calls.lock().unwrap().push(format!("deploy {start}"));
        let broken = self.failing == Some("deploy");
        let result = if broken {
            Err(PollError::Stopped(DeployError::NotText))
        } else {
            Ok(())
        };
        Box::pin(async { result })
    }
}

/// Everything this thread logs.
pub(crate) struct Logs {
    buffer: Arc<Mutex<Vec<u8>>>,
    _guard: DefaultGuard,
}

impl Logs {
    pub(crate) fn capture() -> Self {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || Shared(writer.clone()))
            .finish();
        Self {
            buffer,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.buffer.lock().unwrap().clone()).unwrap()
    }

    /// Looks for the text and for the bytes in the two forms in which we print bytes.
    pub(crate) fn assert_free_of(&self, secrets: &[&[u8]]) {
        use base64::prelude::{BASE64_STANDARD, Engine};
        let text = self.text();
        assert!(!text.is_empty());
        for secret in secrets {
            let forms = [
                String::from_utf8_lossy(secret).into_owned(),
                measurements_hex(secret),
                BASE64_STANDARD.encode(secret),
                format!("{secret:?}"),
            ];
            for form in forms {
                assert!(!text.contains(&form), "{form} is in\n{text}");
            }
        }
    }
}

fn measurements_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
