//! The join client against a join service in this process, inside attested TLS with machines of each technology.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use attestation::{ExpectedMembership, Membership, Purpose};
use attested_tls::{Endpoint, incoming};
use cluster_types::{ClusterId, MeasurementSalt, NodeRole, OperatorPublicKey};
use grpc_api::join::api_server::{Api, ApiServer};
use grpc_api::join::{
    IssueJoinTicketRequest, IssueJoinTicketResponse, IssueRejoinTicketRequest, IssueRejoinTicketResponse,
};
use key_derivation::cluster_id;
use secret::MeasurementSecret;
use test_machines::{Machine, Technology, for_each_technology};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use super::*;
use crate::disk::StateDisk;
use crate::files::Stage;
use crate::request::tests::{operator_key, policy};
use crate::run::{Boot, boot};
use crate::tests::fixture::{Logs, TestNode, components};
use crate::tests::operator;

const MEASUREMENT_SECRET: [u8; 32] = *b"canary-measurement-secret-32byte";
const STATE_DISK_KEY: [u8; 32] = *b"canary-state-disk-key-32-bytes!!";
/// Not the one that the disk was formatted with.
const TICKET_DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c33ff";
const TOKEN: &str = "canary.0123456789abcdef";
const SALT: [u8; 32] = [9; 32];

for_each_technology!(async:
    a_worker_joins_the_cluster_that_its_join_service_proves,
    init_and_join_at_once_take_the_node_once,
    a_join_service_that_belongs_to_no_cluster_is_refused,
    a_join_service_of_another_image_is_refused,
    another_operators_join_service_is_refused,
    a_ticket_for_another_cluster_is_refused,
    a_worker_that_poses_as_join_service_is_refused,
    a_join_client_that_comes_second_lets_the_init_server_be,
    what_a_mirror_made_a_worker_fetch_is_gone_before_its_state_is_written,
    a_failed_worker_tries_kubeadm_again_and_then_gives_up,
);

fn cluster() -> ClusterId {
    let secret = MeasurementSecret::from_bytes(MEASUREMENT_SECRET);
    cluster_id(&secret, &MeasurementSalt::new(SALT))
}

fn ticket() -> IssueJoinTicketResponse {
    IssueJoinTicketResponse {
        disk_uuid: TICKET_DISK.into(),
        state_disk_key: STATE_DISK_KEY.to_vec(),
        measurement_salt: SALT.to_vec(),
        measurement_secret: MEASUREMENT_SECRET.to_vec(),
        kubelet_cert: b"certificate".to_vec(),
        api_server_endpoint: "10.42.1.100:6443".into(),
        token: TOKEN.into(),
        discovery_token_ca_cert_hash: format!("sha256:{}", "ab".repeat(32)),
        kubernetes_version: "v1.35.4".into(),
        kubernetes_components: components(),
        cluster_policy: policy(&operator_key(), cluster(), &components()),
        ..IssueJoinTicketResponse::default()
    }
}

/// Gives the same ticket to everyone who is new and of this image.
struct FakeJoinService(IssueJoinTicketResponse);

#[tonic::async_trait]
impl Api for FakeJoinService {
    async fn issue_join_ticket(
        &self,
        request: Request<IssueJoinTicketRequest>,
    ) -> Result<Response<IssueJoinTicketResponse>, Status> {
        attested_tls::attested_node(&request, Purpose::Join)?;
        let IssueJoinTicketRequest {
            certificate_request,
            is_control_plane,
            role_grant,
        } = request.into_inner();
        assert!(!certificate_request.is_empty());
        assert!(!is_control_plane && role_grant.is_empty());
        Ok(Response::new(self.0.clone()))
    }

    async fn issue_rejoin_ticket(
        &self,
        _: Request<IssueRejoinTicketRequest>,
    ) -> Result<Response<IssueRejoinTicketResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

struct Service {
    address: SocketAddr,
    _machine: Box<dyn Machine>,
}

fn machine(joining: &TestNode) -> Box<dyn Machine> {
    joining.technology.boot_for(&joining.node.hints.operator).unwrap()
}

/// A control plane of our cluster.
fn member(joining: &TestNode) -> Box<dyn Machine> {
    let machine = machine(joining);
    let attester = machine.attester().unwrap();
    attester
        .measure_membership(&membership(NodeRole::ControlPlane))
        .unwrap();
    machine
}

/// A machine of our cluster that must not answer for a control plane.
fn worker(joining: &TestNode) -> Box<dyn Machine> {
    let machine = machine(joining);
    let attester = machine.attester().unwrap();
    attester.measure_membership(&membership(NodeRole::Worker)).unwrap();
    machine
}

fn membership(role: NodeRole) -> Membership {
    Membership::new(cluster(), role)
}

/// A join service on this machine.
async fn service(joining: &TestNode, machine: Box<dyn Machine>, ticket: IssueJoinTicketResponse) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let attester = machine.attester().unwrap();
    let endpoint = Arc::new(Endpoint::new(Some(attester), joining.accepts(ExpectedMembership::New)));
    let server = tonic::transport::Server::builder()
        .add_service(ApiServer::new(FakeJoinService(ticket)))
        .serve_with_incoming(incoming(listener, endpoint, &[Purpose::Join]));
    tokio::spawn(server);
    Service {
        address,
        _machine: machine,
    }
}

async fn check(
    technology: &'static dyn Technology,
    machine: impl FnOnce(&TestNode) -> Box<dyn Machine>,
    ticket: IssueJoinTicketResponse,
) -> Result<Admission, AskError> {
    let join_service = Arc::new(OnceLock::new());
    let joining = TestNode::reaching(technology, NodeRole::Worker, None, join_service.clone());
    let service = service(&joining, machine(&joining), ticket).await;
    join_service.set(service.address).unwrap();
    joining.node.obey_operator().await.unwrap();
    let endpoint = endpoint_for_members(&joining.node).unwrap();
    let somewhere = SocketAddrV4::new([10, 42, 1, 100].into(), 30090);
    let asked = ask(&joining.node, &endpoint, somewhere).await;
    assert!(matches!(boot(&*joining.node.attester).unwrap(), Boot::New));
    asked
}

async fn a_worker_joins_the_cluster_that_its_join_service_proves(technology: &'static dyn Technology) {
    let logs = Logs::capture();
    let join_service = Arc::new(OnceLock::new());
    let joining = TestNode::reaching(technology, NodeRole::Worker, None, join_service.clone());
    let (_, running) = joining.start().await;
    // The first rounds find nobody.
    let service = service(&joining, member(&joining), ticket()).await;
    join_service.set(service.address).unwrap();
    running.await.unwrap().unwrap();

    assert!(
        joining
            .node
            .attester
            .membership()
            .unwrap()
            .is(&membership(NodeRole::Worker))
    );
    assert_eq!(joining.disk.keys(), [STATE_DISK_KEY]);
    assert_eq!(joining.disk.uuid().unwrap().to_string(), TICKET_DISK);
    assert_eq!(joining.node.files.load_state().unwrap().stage, Stage::Member);
    assert!(!joining.file("run/state/constellation/master-secret.json").exists());
    assert!(joining.file("run/state/kubelet/pki/kubelet-serving.key").exists());
    assert_eq!(joining.programs.calls(), ["ip address", "ip link", "kubeadm join"]);
    logs.assert_free_of(&[b"canary", &MEASUREMENT_SECRET, &STATE_DISK_KEY, TOKEN.as_bytes()]);
}

async fn init_and_join_at_once_take_the_node_once(technology: &'static dyn Technology) {
    let join_service = Arc::new(OnceLock::new());
    let node = TestNode::reaching(technology, NodeRole::Worker, None, join_service.clone());
    let service = service(&node, member(&node), ticket()).await;
    join_service.set(service.address).unwrap();
    let (address, running) = node.start().await;
    let initialised = crate::tests::try_init(&node, address).await;
    if initialised {
        running.abort();
    } else {
        running.await.unwrap().unwrap();
    }
    let measured = node.node.attester.membership().unwrap();
    let owner = if initialised {
        crate::tests::first_of_cluster()
    } else {
        membership(NodeRole::Worker)
    };
    assert!(measured.is(&owner));
    assert_eq!(node.disk.keys().len(), 1);
}

async fn a_join_service_that_belongs_to_no_cluster_is_refused(technology: &'static dyn Technology) {
    let error = check(technology, machine, ticket()).await.err().unwrap();
    assert!(
        matches!(error, AskError::Handshake(HandshakeError::NotAffirmed(_))),
        "{error}"
    );
}

async fn a_join_service_of_another_image_is_refused(technology: &'static dyn Technology) {
    let changed = |joining: &TestNode| {
        let machine = member(joining);
        machine.change_image().unwrap();
        machine
    };
    let error = check(technology, changed, ticket()).await.err().unwrap();
    assert!(
        matches!(error, AskError::Handshake(HandshakeError::NotAffirmed(_))),
        "{error}"
    );
}

async fn another_operators_join_service_is_refused(technology: &'static dyn Technology) {
    let other = |joining: &TestNode| {
        let machine = joining.technology.boot_for(&OperatorPublicKey::new([1; 32])).unwrap();
        let attester = machine.attester().unwrap();
        attester
            .measure_membership(&membership(NodeRole::ControlPlane))
            .unwrap();
        machine
    };
    let error = check(technology, other, ticket()).await.err().unwrap();
    assert!(
        matches!(error, AskError::Handshake(HandshakeError::NotAffirmed(_))),
        "{error}"
    );
}

async fn a_ticket_for_another_cluster_is_refused(technology: &'static dyn Technology) {
    let foreign = IssueJoinTicketResponse {
        measurement_secret: vec![7; 32],
        ..ticket()
    };
    let error = check(technology, member, foreign).await.err().unwrap();
    assert!(
        matches!(error, AskError::Ticket(InvalidTicket::NotOurControlPlane { .. })),
        "{error}"
    );
}

async fn a_worker_that_poses_as_join_service_is_refused(technology: &'static dyn Technology) {
    let error = check(technology, worker, ticket()).await.err().unwrap();
    assert!(
        matches!(error, AskError::Ticket(InvalidTicket::NotOurControlPlane { .. })),
        "{error}"
    );
}

async fn a_join_client_that_comes_second_lets_the_init_server_be(technology: &'static dyn Technology) {
    let join_service = Arc::new(OnceLock::new());
    let joining = TestNode::reaching(technology, NodeRole::Worker, None, join_service.clone());
    let service = service(&joining, member(&joining), ticket()).await;
    join_service.set(service.address).unwrap();
    let _reservation = joining.node.lock.reserve(Owner::Init).unwrap();
    joining.node.obey_operator().await.unwrap();
    assert_eq!(join(&joining.node).await.unwrap(), Joined::InitTookOver);
    assert!(joining.disk.keys().is_empty());
    assert!(matches!(boot(&*joining.node.attester).unwrap(), Boot::New));
}

/// It may have filled the disk.
async fn what_a_mirror_made_a_worker_fetch_is_gone_before_its_state_is_written(technology: &'static dyn Technology) {
    let join_service = Arc::new(OnceLock::new());
    let joining = TestNode::reaching(technology, NodeRole::Worker, None, join_service.clone());
    let service = service(&joining, member(&joining), ticket()).await;
    join_service.set(service.address).unwrap();
    joining.node.obey_operator().await.unwrap();
    let fetched = joining.file("run/state/components/unwanted");
    std::fs::create_dir_all(fetched.parent().unwrap()).unwrap();
    std::fs::write(&fetched, "").unwrap();
    // Nothing can be written over a folder.
    std::fs::create_dir_all(joining.file("run/state/constellation/node-state.json")).unwrap();
    let error = join(&joining.node).await.unwrap_err();
    assert!(matches!(error, BecomeMemberError::Files(_)), "{error}");
    assert!(!fetched.exists());
}

async fn a_failed_worker_tries_kubeadm_again_and_then_gives_up(technology: &'static dyn Technology) {
    tokio::time::pause();
    let joining = TestNode::failing(technology, NodeRole::Worker, Some("kubeadm"));
    let attester = joining.node.attester.clone();
    attester
        .measure_membership(&membership(NodeRole::ControlPlane))
        .unwrap();
    let ticket = Ticket::parse(ticket(), &attester.membership().unwrap(), &operator(), NodeRole::Worker).unwrap();
    assert!(join_cluster(&joining.node, &ticket).await.is_err());
    assert_eq!(joining.programs.calls(), ["kubeadm join"; 3]);
}
