use std::path::Path;
use std::process::Command;

use anyhow::Result;
use attestation::{Membership, Purpose};
use attested_tls::{AttestedChannel, HandshakeError, channel};
use cluster_objects::components_config_map;
use cluster_types::{ClusterId, DiskUuid, NodeRole, Service};
use deployment::Object;
use grpc_api::join::api_client::ApiClient;
use grpc_api::join::{IssueJoinTicketRequest, IssueJoinTicketResponse, IssueRejoinTicketRequest};
use key_derivation::MasterSecret;
use kubernetes_components::ComponentList;
use node_secrets::NodeSecrets;
use operator_key::OperatorKey;
use rcgen::{CertificateParams, KeyPair, SanType};
use role_grant::RoleGrant;
use tempfile::TempDir;
use test_cluster::{TestCluster, free_address};
use test_machines::{Machine, Technology, master_secret, program};
use tonic::Status;

use crate::join_config::write;
use crate::process::Listens;
use crate::{AttestationDaemon, JoinConfigExample, JoiningNode, KeyService, ServiceProcess, mount};

/// A ticket, and the secrets that only its node can read.
#[derive(Debug)]
pub struct Admitted {
    /// As the join service sent it.
    pub ticket: IssueJoinTicketResponse,
    /// From the key service.
    pub secrets: NodeSecrets,
}

/// In the certificate of the cluster's API server.
const API_SERVER: [u8; 4] = [10, 42, 1, 100];
const CONFIG: &str = "config";
const CERTIFICATE: &str = "apiserver.crt";
const POLICY_STORE: &str = "cluster-policy";

/// A control plane: API server, key service, join service and the machine they run on.
pub struct ControlPlane {
    join_service: ServiceProcess,
    address: String,
    key_service: KeyService,
    cluster: TestCluster,
    folder: TempDir,
    attestation: AttestationDaemon,
    _machine: Box<dyn Machine>,
}

impl ControlPlane {
    /// Starts everything on a machine that has measured its membership.
    ///
    /// # Errors
    /// When a part does not come up.
    pub async fn start(programs: &Path, technology: &dyn Technology) -> Result<Self> {
        Self::start_with(programs, technology, &[]).await
    }

    /// Starts everything, the join service with more arguments.
    ///
    /// # Errors
    /// When a part does not come up.
    pub async fn start_with(programs: &Path, technology: &dyn Technology, arguments: &[&str]) -> Result<Self> {
        let (cluster, key_service) = tokio::join!(
            TestCluster::start(),
            KeyService::start(programs, technology, master_secret())
        );
        let (cluster, key_service) = (cluster?, key_service?);
        let (machine, folder) = (technology.boot()?, TempDir::with_prefix("join-service-")?);
        // What the bootstrapper does on the first node.
        let config = key_service.config();
        machine
            .attester()?
            .measure_membership(&Membership::new(config.cluster, NodeRole::ControlPlane))?;
        write(&folder.path().join(POLICY_STORE), config.policy().as_bytes())?;
        mount(&config.config(), &folder.path().join(CONFIG))?;
        write_api_server_certificate(&folder.path().join(CERTIFICATE))?;
        apply(&cluster, &config.components).await?;
        let address = free_address()?;
        let attestation = AttestationDaemon::start(programs, technology, &*machine).await?;
        let mut command = program(technology, programs, Service::Join.name());
        command
            .args(arguments)
            .arg("--attestation-socket")
            .arg(attestation.join_socket())
            .env("KUBECONFIG", cluster.kubeconfig(Service::Join.name()).await?)
            .arg("--key-service")
            .arg(key_service.socket());
        Ok(Self {
            join_service: start_join_service(command, folder.path(), &address).await?,
            address,
            key_service,
            cluster,
            folder,
            attestation,
            _machine: machine,
        })
    }

    /// The running join service.
    #[must_use]
    pub fn join_service(&self) -> &ServiceProcess {
        &self.join_service
    }

    /// The key service beside it.
    #[must_use]
    pub fn key_service(&self) -> &KeyService {
        &self.key_service
    }

    /// Through which the join service attests.
    #[must_use]
    pub fn attestation(&self) -> &AttestationDaemon {
        &self.attestation
    }

    /// The API server.
    #[must_use]
    pub fn cluster(&self) -> &TestCluster {
        &self.cluster
    }

    /// `host:port` of the join service.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the join service was started with.
    #[must_use]
    pub fn config(&self) -> &JoinConfigExample {
        self.key_service.config()
    }

    /// Whoever may write the ConfigMap changes one key, which the join service then finds mounted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn edit_config(&self, key: &str, value: &[u8]) -> Result<()> {
        write(&self.folder.path().join(CONFIG).join(key), value)
    }

    /// What its keys are derived from.
    #[must_use]
    pub fn master_secret(&self) -> &MasterSecret {
        self.key_service.master_secret()
    }

    /// The cluster it is the control plane of.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.config().cluster
    }

    /// A session of a node with the join service.
    ///
    /// # Errors
    /// When one refuses the other.
    pub async fn session(&self, node: &JoiningNode, purpose: Purpose) -> Result<AttestedChannel, HandshakeError> {
        channel(&node.endpoint(), purpose, &self.address).await
    }

    /// Opens a session, requests a ticket, and opens its secrets.
    ///
    /// # Errors
    /// When there is no ticket.
    ///
    /// # Panics
    /// When the secrets are not the node's.
    pub async fn join(&self, node: &JoiningNode, request: IssueJoinTicketRequest) -> Result<Admitted, Status> {
        let session = self.session(node, Purpose::Join).await;
        let session = session.map_err(|error| Status::from_error(error.into()))?;
        let ticket = ApiClient::new(session.channel.clone())
            .issue_join_ticket(request)
            .await?;
        let ticket = ticket.into_inner();
        let secrets = self.open(node, &session, &ticket.sealed_secrets);
        Ok(Admitted { ticket, secrets })
    }

    /// Opens a session as a worker would after a reboot, and requests the key of a disk.
    ///
    /// # Errors
    /// When there is no ticket.
    ///
    /// # Panics
    /// When the secrets are not the node's.
    pub async fn rejoin(&self, node: &JoiningNode, disk: DiskUuid) -> Result<NodeSecrets, Status> {
        let session = self.session(node, Purpose::Rejoin).await;
        let session = session.map_err(|error| Status::from_error(error.into()))?;
        let request = IssueRejoinTicketRequest {
            disk_uuid: disk.to_string(),
            is_control_plane: false,
        };
        let ticket = ApiClient::new(session.channel.clone())
            .issue_rejoin_ticket(request)
            .await?;
        Ok(self.open(node, &session, &ticket.into_inner().sealed_secrets))
    }

    fn open(&self, node: &JoiningNode, session: &AttestedChannel, sealed: &[u8]) -> NodeSecrets {
        let binding = session.own_binding.expect("join services require Evidence");
        let key_service = &self.config().key_service_key;
        node_secrets::open(sealed, node.sealing_key(), &binding, key_service).expect("sealed to this node")
    }

    /// The operator's word that this machine may be a control plane.
    #[must_use]
    pub fn grant(&self, node: &JoiningNode) -> Vec<u8> {
        let grant = RoleGrant {
            cluster: self.cluster_id(),
            machine: node.attester().identity(),
            role: NodeRole::ControlPlane,
            not_after: u64::MAX,
            serial: self.config().serial,
        };
        grant.sign(&OperatorKey::of(self.master_secret()))
    }

    /// Everything the services and the daemon logged so far.
    #[must_use]
    pub fn logs(&self) -> String {
        self.key_service.log() + &self.join_service.log() + &self.attestation.process().log()
    }
}

fn write_api_server_certificate(file: &Path) -> Result<()> {
    let mut api_server = CertificateParams::default();
    api_server.subject_alt_names = vec![SanType::IpAddress(API_SERVER.into())];
    let api_server = api_server.self_signed(&KeyPair::generate()?)?;
    write(file, api_server.pem().as_bytes())
}

/// The rights that an image deploys, and nothing more.
async fn apply(cluster: &TestCluster, components: &ComponentList) -> Result<()> {
    let admin = cluster.admin()?;
    deployment::namespace().apply(&admin).await?;
    let components = Object::new(components_config_map(components));
    components.apply(&admin).await?;
    for object in deployment::rights(Service::Join) {
        object.apply(&admin).await?;
    }
    let account = Service::Join.name();
    cluster.wait_until_allowed(account, "create", "", "secrets").await
}

async fn start_join_service(mut command: Command, folder: &Path, address: &str) -> Result<ServiceProcess> {
    command
        .args(["--address", address])
        .arg("--config")
        .arg(folder.join(CONFIG))
        .arg("--policy-store")
        .arg(folder.join(POLICY_STORE))
        .arg("--api-server-certificate")
        .arg(folder.join(CERTIFICATE));
    ServiceProcess::start(command, &Listens::Tcp(address.to_owned()), folder.join("log")).await
}
