//! The join service and the key service as processes, with a real API server and real software TPMs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use attestation::{Attester, Purpose, Verifiers};
use attestation_tpm::{Membership, PcrPolicy, SocketTransport, Tpm, TpmAttester};
use attestation_variants::qemu_vtpm;
use attested_tls::{AttestedNode, Endpoint, HandshakeError, PeerPolicy, channel};
use cluster_types::{ClusterId, MeasurementSalt, NodeRole, Service};
use grpc_api::join::api_client::ApiClient;
use grpc_api::join::{IssueJoinTicketRequest, IssueJoinTicketResponse, IssueRejoinTicketRequest};
use key_derivation::{Label, MasterSecret, cluster_id};
use key_service_client::{AUDIENCE, KeyServicePublicKey};
use kubernetes::deployment;
use kubernetes::{Cluster, JoinConfig, components_object};
use kubernetes_components::ComponentList;
use measurements::{PcrIndex, PcrValue, ReferenceValues};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use role_grant::{OperatorKey, RoleGrant};
use tempfile::TempDir;
use test_cluster::{TestCluster, free_address};
use test_tpm::SoftwareTpm;
use tonic::transport::Channel;
use tonic::{Code, Status};

const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";
const OTHER_DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3302";

/// A control plane: API server, key service, join service and the TPM of the machine they run on.
struct ControlPlane {
    services: Vec<Child>,
    folder: TempDir,
    address: String,
    cluster: TestCluster,
    master_secret: MasterSecret,
    _tpm: SoftwareTpm,
}

struct Node {
    attester: Arc<TpmAttester>,
    _tpm: SoftwareTpm,
}

fn image() -> ReferenceValues {
    ReferenceValues::new("image", BTreeMap::from([(PcrIndex::new(11), PcrValue::ZERO)]))
}

fn attester(tpm: &SoftwareTpm) -> TpmAttester {
    qemu_vtpm::attester_on(Tpm::new(SocketTransport::connect(&tpm.socket()).unwrap())).unwrap()
}

impl Node {
    fn boot() -> Self {
        let tpm = SoftwareTpm::start().unwrap();
        Self {
            attester: Arc::new(attester(&tpm)),
            _tpm: tpm,
        }
    }

    /// What a node accepts of a join service: its own image, and membership of some cluster.
    fn endpoint(&self) -> Endpoint {
        let attester: Arc<dyn Attester> = self.attester.clone();
        let verifier = qemu_vtpm::verifier(PcrPolicy::new(image(), Membership::Any));
        Endpoint::new(Some(attester), PeerPolicy::Attested(Arc::new(Verifiers::one(verifier))))
    }
}

impl ControlPlane {
    async fn start() -> Self {
        let cluster = TestCluster::start().await.unwrap();
        let master_secret = MasterSecret::generate();
        let tpm = SoftwareTpm::start().unwrap();
        let mut this = Self {
            services: Vec::new(),
            folder: TempDir::new().unwrap(),
            address: free_address().unwrap(),
            cluster,
            master_secret,
            _tpm: tpm,
        };
        this.measure_cluster_id();
        this.write_files();
        this.apply().await;
        this.start_services().await;
        this
    }

    fn cluster_id(&self) -> ClusterId {
        cluster_id(
            &self.master_secret.kek().measurement_secret(),
            &MeasurementSalt::new([5; 32]),
        )
    }

    /// What the bootstrapper does on the first node.
    fn measure_cluster_id(&self) {
        let id = self.cluster_id();
        attester(&self._tpm)
            .with_tpm(|tpm| tpm.extend_with_event(PcrIndex::CLUSTER_ID, id.as_bytes()))
            .unwrap();
    }

    fn components() -> ComponentList {
        ComponentList::new("v1.35.4".parse().unwrap(), Vec::new()).unwrap()
    }

    fn operator(&self) -> OperatorKey {
        OperatorKey::from_seed(&self.master_secret.kek().derive_array(Label::OperatorIdentity))
    }

    fn join_config(&self) -> JoinConfig {
        let identity = self.master_secret.kek().derive_array(Label::KeyServiceIdentity);
        JoinConfig {
            reference_values: image(),
            measurement_salt: MeasurementSalt::new([5; 32]),
            operator_key: self.operator().public(),
            key_service_key: KeyServicePublicKey::of_seed(&identity),
            api_server_endpoint: "10.42.1.100:6443".into(),
            kubernetes_version: "v1.35.4".parse().unwrap(),
            components: Self::components().config_map_name(),
            component_mirror: "http://10.0.2.2:1/mirror".into(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_files(&self) {
        let write = |name: &str, bytes: &[u8]| {
            let path = self.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        write("master-secret", self.master_secret.to_json().as_bytes());
        let config = self.join_config().to_config_map();
        for (key, value) in config.data.unwrap() {
            write(&format!("config/{key}"), value.as_bytes());
        }
        for (key, value) in config.binary_data.unwrap() {
            write(&format!("config/{key}"), &value.0);
        }
        write("pki/ca.crt", self.cluster.pki().ca_certificate().as_bytes());
        write("pki/ca.key", self.cluster.pki().ca_key().as_bytes());
        for name in [
            "sa.key",
            "sa.pub",
            "front-proxy-ca.crt",
            "front-proxy-ca.key",
            "etcd/ca.crt",
            "etcd/ca.key",
        ] {
            write(&format!("pki/{name}"), name.as_bytes());
        }
    }

    /// The rights that the CLI applies, and nothing more.
    async fn apply(&self) {
        let admin = Cluster::new(self.cluster.admin().unwrap());
        admin.apply(&deployment::namespace()).await.unwrap();
        admin.apply(&components_object(&Self::components())).await.unwrap();
        for service in [Service::Key, Service::Join] {
            for object in deployment::rights(service) {
                admin.apply(&object).await.unwrap();
            }
        }
        self.cluster
            .wait_until_allowed("key-service", "create", "authentication.k8s.io", "tokenreviews")
            .await
            .unwrap();
        self.cluster
            .wait_until_allowed("join-service", "create", "", "secrets")
            .await
            .unwrap();
    }

    async fn start_services(&mut self) {
        let key_service = free_address().unwrap();
        let token = self.cluster.token("join-service", Some(AUDIENCE)).await.unwrap();
        std::fs::write(self.path("token"), token).unwrap();
        let mut key = self.command("key-service").await;
        key.args(["--address", &key_service])
            .arg("--master-secret")
            .arg(self.path("master-secret"));
        key.arg("--audit-log").arg(self.path("audit"));
        self.spawn(key, &key_service).await;
        let mut join = self.command("join-service").await;
        join.args(["--address", &self.address, "--key-service", &key_service]);
        join.arg("--config")
            .arg(self.path("config"))
            .arg("--pki")
            .arg(self.path("pki"));
        join.arg("--key-service-token").arg(self.path("token"));
        join.arg("--tpm-socket").arg(self._tpm.socket());
        let address = self.address.clone();
        self.spawn(join, &address).await;
    }

    async fn command(&self, name: &str) -> Command {
        let join_service = PathBuf::from(env!("CARGO_BIN_EXE_join-service"));
        let mut command = Command::new(join_service.with_file_name(name));
        command
            .env("KUBECONFIG", self.cluster.kubeconfig(name).await.unwrap())
            .args(["--health-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(self.path(&format!("{name}.log"))).unwrap());
        command
    }

    async fn spawn(&mut self, mut command: Command, address: &str) {
        let hint = "is the key service built? `make test` builds all programs first";
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; {hint}"));
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert!(
                child.try_wait().unwrap().is_none(),
                "{command:?} ended: {}",
                self.logs()
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        self.services.push(child);
    }

    fn logs(&self) -> String {
        let log = |name| std::fs::read_to_string(self.path(name)).unwrap_or_default();
        log("key-service.log") + &log("join-service.log")
    }

    async fn session(&self, node: &Node, purpose: Purpose) -> (ApiClient<Channel>, AttestedNode) {
        let (channel, peer) = channel(&node.endpoint(), purpose, &self.address).await.unwrap();
        (ApiClient::new(channel), peer.unwrap())
    }

    async fn join(&self, node: &Node, request: IssueJoinTicketRequest) -> Result<IssueJoinTicketResponse, Status> {
        let (mut client, _) = self.session(node, Purpose::Join).await;
        client.issue_join_ticket(request).await.map(tonic::Response::into_inner)
    }

    fn grant(&self, node: &Node) -> Vec<u8> {
        self.operator().sign(&RoleGrant {
            cluster: self.cluster_id(),
            machine: node.attester.identity(),
            role: NodeRole::ControlPlane,
            not_after: u64::MAX,
        })
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for service in &mut self.services {
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

fn request(name: &str, disk: &str) -> IssueJoinTicketRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("system:node:{name}"));
    let key = KeyPair::generate().unwrap();
    IssueJoinTicketRequest {
        disk_uuid: disk.into(),
        certificate_request: params.serialize_request(&key).unwrap().der().to_vec(),
        ..IssueJoinTicketRequest::default()
    }
}

fn rejoin(disk: &str) -> IssueRejoinTicketRequest {
    IssueRejoinTicketRequest { disk_uuid: disk.into() }
}

/// The refusal is of this kind, names the field and says why.
fn check_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, what: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().starts_with(what), "{}", status.message());
    assert_eq!(status.message().lines().count(), 1, "{}", status.message());
}

fn check_denied<T: std::fmt::Debug>(result: Result<T, Status>, what: &str) {
    check_refused(result, Code::PermissionDenied, what);
}

/// The refusal names the field and nothing of whoever the disk or the name belongs to.
fn check_not_owner<T: std::fmt::Debug>(result: Result<T, Status>, what: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, what));
}

#[tokio::test]
async fn nodes_get_what_is_theirs_and_nothing_else() {
    let control_plane = ControlPlane::start().await;
    let kek = control_plane.master_secret.kek();
    let worker = Node::boot();

    // The node sees that the service belongs to an initialised node of its own image.
    let (mut client, peer) = control_plane.session(&worker, Purpose::Join).await;
    let expected = PcrValue::ZERO.event(control_plane.cluster_id().as_bytes());
    assert_eq!(peer.result().pcrs[&PcrIndex::CLUSTER_ID], expected);
    let ticket = client.issue_join_ticket(request("worker-0", DISK)).await;
    let ticket = ticket
        .unwrap_or_else(|error| panic!("{error}\n{}", control_plane.logs()))
        .into_inner();
    assert_eq!(
        ticket.state_disk_key,
        kek.state_disk_key(DISK.parse().unwrap()).expose()
    );
    assert_eq!(ticket.measurement_secret, kek.measurement_secret().expose());
    assert_eq!(ticket.token.len(), 23);
    assert!(ticket.discovery_token_ca_cert_hash.starts_with("sha256:"));
    assert!(ticket.control_plane_files.is_empty() && ticket.master_secret.is_none());

    // A ticket can be asked for again by the same machine.
    control_plane.join(&worker, request("worker-0", DISK)).await.unwrap();
    // Another machine gets neither its disk key nor its name, and does not learn whose they are.
    let thief = Node::boot();
    let disk_of_another = "disk_uuid is not a disk of this machine";
    let name_of_another = "certificate_request is not for a node name of this machine";
    check_not_owner(
        control_plane.join(&thief, request("worker-1", DISK)).await,
        disk_of_another,
    );
    check_not_owner(
        control_plane.join(&thief, request("worker-0", OTHER_DISK)).await,
        name_of_another,
    );

    // A control plane needs the operator's grant for this very machine.
    let wish = |grant| IssueJoinTicketRequest {
        is_control_plane: true,
        role_grant: grant,
        ..request("worker-0", DISK)
    };
    check_denied(
        control_plane.join(&worker, wish(Vec::new())).await,
        "role_grant is refused: a control-plane needs a role grant",
    );
    check_denied(
        control_plane.join(&worker, wish(control_plane.grant(&thief))).await,
        "role_grant is refused: the role grant is for machine",
    );
    let ticket = control_plane
        .join(&worker, wish(control_plane.grant(&worker)))
        .await
        .unwrap();
    assert_eq!(ticket.control_plane_files.len(), 8);
    assert_eq!(
        ticket.master_secret.unwrap().key,
        control_plane.master_secret.expose_key()
    );

    // After a reboot the machine gets its disk key again; another one does not.
    let (mut client, _) = control_plane.session(&worker, Purpose::Rejoin).await;
    let ticket = client.issue_rejoin_ticket(rejoin(DISK)).await.unwrap().into_inner();
    assert_eq!(
        ticket.state_disk_key,
        kek.state_disk_key(DISK.parse().unwrap()).expose()
    );
    let unknown = rejoin("3f2504e0-4f89-11d3-9a0c-0305e82c33ff");
    check_not_owner(client.issue_rejoin_ticket(unknown).await, disk_of_another);
    let (mut client, _) = control_plane.session(&thief, Purpose::Rejoin).await;
    check_not_owner(client.issue_rejoin_ticket(rejoin(DISK)).await, disk_of_another);
    // A session for one purpose does not serve the other.
    check_refused(
        client.issue_join_ticket(request("worker-2", OTHER_DISK)).await,
        Code::PermissionDenied,
        "the session is not attested for this purpose",
    );

    let logs = control_plane.logs();
    for secret in [
        hex::encode(kek.measurement_secret().expose()),
        hex::encode(control_plane.master_secret.expose_key()),
    ] {
        assert!(!logs.contains(&secret));
    }
}

#[tokio::test]
async fn bad_input_to_each_field_gives_one_error_that_names_it() {
    type Change = fn(&mut IssueJoinTicketRequest);
    let control_plane = ControlPlane::start().await;
    let node = Node::boot();
    let cases: [(Change, Code, &str); 11] = [
        (
            |m| m.disk_uuid.clear(),
            Code::InvalidArgument,
            "disk_uuid is invalid: \"\" is not a UUID",
        ),
        (
            |m| m.disk_uuid = "measurementSecret".into(),
            Code::InvalidArgument,
            "disk_uuid is invalid: \"measurementSecret\" is not a UUID",
        ),
        (
            |m| m.disk_uuid = DISK.to_uppercase(),
            Code::InvalidArgument,
            "disk_uuid is invalid: \"3F2504E0",
        ),
        (
            |m| m.disk_uuid.push('\n'),
            Code::InvalidArgument,
            "disk_uuid is invalid: \"3f2504e0",
        ),
        (
            |m| m.certificate_request.clear(),
            Code::InvalidArgument,
            "certificate_request is refused: the certificate request cannot be read",
        ),
        (
            |m| m.certificate_request.truncate(64),
            Code::InvalidArgument,
            "certificate_request is refused: the certificate request cannot be read",
        ),
        (
            |m| m.certificate_request = request("../n", DISK).certificate_request,
            Code::InvalidArgument,
            "certificate_request is refused: the certificate request names no valid node",
        ),
        (
            |m| m.is_control_plane = true,
            Code::PermissionDenied,
            "role_grant is refused: a control-plane needs a role grant",
        ),
        (
            |m| (m.is_control_plane, m.role_grant) = (true, vec![1]),
            Code::PermissionDenied,
            "role_grant is refused: the role grant is malformed",
        ),
        (
            |m| (m.is_control_plane, m.role_grant) = (true, vec![0; 1025]),
            Code::PermissionDenied,
            "role_grant is refused: the role grant is malformed",
        ),
        (
            |m| m.role_grant = vec![1],
            Code::PermissionDenied,
            "role_grant is refused: it is there, but is_control_plane is not set",
        ),
    ];
    for (change, code, what) in cases {
        let mut message = request("n", DISK);
        change(&mut message);
        check_refused(control_plane.join(&node, message).await, code, what);
    }
    let (mut client, _) = control_plane.session(&node, Purpose::Rejoin).await;
    for bad in ["", "measurementSecret", &DISK.to_uppercase()] {
        let refused = client.issue_rejoin_ticket(rejoin(bad)).await;
        check_refused(
            refused,
            Code::InvalidArgument,
            &format!("disk_uuid is invalid: {bad:?}"),
        );
    }
}

#[tokio::test]
async fn nodes_that_are_not_what_they_should_be_get_no_session() {
    let control_plane = ControlPlane::start().await;
    for register in [11, 15] {
        let node = Node::boot();
        node.attester
            .with_tpm(|tpm| tpm.extend_with_event(PcrIndex::new(register), &[1; 32]))
            .unwrap();
        let result = channel(&node.endpoint(), Purpose::Join, &control_plane.address).await;
        assert!(
            matches!(result, Err(HandshakeError::RefusedByPeer(_))),
            "PCR {register}"
        );
    }
    assert!(control_plane.logs().contains("contraindicated"));
}
