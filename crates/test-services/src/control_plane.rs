use std::path::Path;
use std::process::Command;

use anyhow::Result;
use attestation::{Membership, Purpose};
use attested_tls::{AttestedNode, HandshakeError, channel};
use cluster_objects::components_config_map;
use cluster_types::key_service::AUDIENCE;
use cluster_types::{ClusterId, NodeRole, Service};
use deployment::Object;
use grpc_api::join::IssueJoinTicketRequest;
use grpc_api::join::IssueJoinTicketResponse;
use grpc_api::join::api_client::ApiClient;
use key_derivation::{Label, MasterSecret, cluster_id};
use kubernetes_components::ComponentList;
use operator_key::OperatorKey;
use rcgen::{CertificateParams, KeyPair, SanType};
use role_grant::RoleGrant;
use tempfile::TempDir;
use test_cluster::free_address;
use test_machines::{Machine, Technology, master_secret, program};
use tonic::Status;
use tonic::transport::Channel;

use crate::join_config::{SALT, write};
use crate::{JoinConfigExample, JoiningNode, KeyService, ServiceProcess, mount};

/// In the certificate of the cluster's API server.
const API_SERVER: [u8; 4] = [10, 42, 1, 100];
const CONFIG: &str = "config";
const POLICY_STORE: &str = "cluster-policy";

/// A control plane: API server, key service, join service and the machine they run on.
pub struct ControlPlane {
    join_service: ServiceProcess,
    address: String,
    key_service: KeyService,
    config: JoinConfigExample,
    folder: TempDir,
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
        let key_service = KeyService::start(programs, master_secret()).await?;
        let (machine, folder) = (technology.boot()?, TempDir::with_prefix("join-service-")?);
        // What the bootstrapper does on the first node.
        let cluster = cluster_id_of(key_service.master_secret());
        machine
            .attester()?
            .measure_membership(&Membership::new(cluster, NodeRole::ControlPlane))?;
        let config = JoinConfigExample {
            operator_seed: *key_service.master_secret().kek().derive_array(Label::OperatorIdentity),
            cluster,
            key_service_key: key_service.public_key(),
            ..JoinConfigExample::of(technology)
        };
        write(&folder.path().join(POLICY_STORE), config.policy().as_bytes())?;
        mount(&config.config(), &folder.path().join(CONFIG))?;
        write_pki(&folder.path().join("pki"), &key_service)?;
        apply(&key_service, &config.components).await?;
        let address = free_address()?;
        let mut command = program(technology, programs, Service::Join.name());
        command.args(arguments);
        Ok(Self {
            join_service: start_join_service(command, folder.path(), &key_service, &*machine, &address).await?,
            address,
            key_service,
            config,
            folder,
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

    /// `host:port` of the join service.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the join service was started with.
    #[must_use]
    pub fn config(&self) -> &JoinConfigExample {
        &self.config
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
        cluster_id_of(self.master_secret())
    }

    /// A session of a node with the join service.
    ///
    /// # Errors
    /// When one refuses the other.
    pub async fn session(
        &self,
        node: &JoiningNode,
        purpose: Purpose,
    ) -> Result<(ApiClient<Channel>, Option<AttestedNode>), HandshakeError> {
        let (channel, peer) = channel(&node.endpoint(), purpose, &self.address).await?;
        Ok((ApiClient::new(channel), peer))
    }

    /// Opens a session and requests a ticket.
    ///
    /// # Errors
    /// When there is no ticket.
    pub async fn join(
        &self,
        node: &JoiningNode,
        request: IssueJoinTicketRequest,
    ) -> Result<IssueJoinTicketResponse, Status> {
        let session = self.session(node, Purpose::Join).await;
        let (mut client, _) = session.map_err(|error| Status::from_error(error.into()))?;
        client.issue_join_ticket(request).await.map(tonic::Response::into_inner)
    }

    /// The operator's word that this machine may be a control plane.
    #[must_use]
    pub fn grant(&self, node: &JoiningNode) -> Vec<u8> {
        let grant = RoleGrant {
            cluster: self.cluster_id(),
            machine: node.attester().identity(),
            role: NodeRole::ControlPlane,
            not_after: u64::MAX,
            serial: self.config.serial,
        };
        grant.sign(&OperatorKey::of(self.master_secret()))
    }

    /// Everything both services logged so far.
    #[must_use]
    pub fn logs(&self) -> String {
        self.key_service.log() + &self.join_service.log()
    }
}

fn cluster_id_of(master_secret: &MasterSecret) -> ClusterId {
    cluster_id(&master_secret.kek().measurement_secret(), &SALT)
}

/// The cluster's own authority; of what only is handed on, the names.
fn write_pki(folder: &Path, key_service: &KeyService) -> Result<()> {
    let authority = key_service.cluster().pki();
    write(&folder.join("ca.crt"), authority.ca_certificate().as_bytes())?;
    write(&folder.join("ca.key"), authority.ca_key().as_bytes())?;
    let mut api_server = CertificateParams::default();
    api_server.subject_alt_names = vec![SanType::IpAddress(API_SERVER.into())];
    let api_server = api_server.self_signed(&KeyPair::generate()?)?;
    write(&folder.join("apiserver.crt"), api_server.pem().as_bytes())?;
    for name in [
        "sa.key",
        "sa.pub",
        "front-proxy-ca.crt",
        "front-proxy-ca.key",
        "etcd/ca.crt",
        "etcd/ca.key",
    ] {
        write(&folder.join(name), name.as_bytes())?;
    }
    Ok(())
}

/// The rights that the CLI applies, and nothing more.
async fn apply(key_service: &KeyService, components: &ComponentList) -> Result<()> {
    let cluster = key_service.cluster();
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

async fn start_join_service(
    mut command: Command,
    folder: &Path,
    key_service: &KeyService,
    machine: &dyn Machine,
    address: &str,
) -> Result<ServiceProcess> {
    let (cluster, name) = (key_service.cluster(), Service::Join.name());
    let token = cluster.token(name, Some(AUDIENCE)).await?;
    command
        .env("KUBECONFIG", cluster.kubeconfig(name).await?)
        .args(["--key-service", key_service.address()])
        .arg("--key-service-token")
        .arg(key_service.token_file(&token)?)
        .arg("--config")
        .arg(folder.join(CONFIG))
        .arg("--policy-store")
        .arg(folder.join(POLICY_STORE))
        .arg("--pki")
        .arg(folder.join("pki"))
        .arg("--emulator")
        .arg(machine.emulator());
    ServiceProcess::start(command, address, folder.join("log")).await
}
