//! The join client against a join service in this process, inside attested TLS with machines of each technology.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use attestation::{ExpectedMembership, Membership, Purpose};
use attested_tls::{Endpoint, incoming};
use cluster_types::{ClusterId, MeasurementSalt, NodeName, NodeRole, OperatorPublicKey};
use digest::Digest;
use grpc_api::join::api_server::{Api, ApiServer};
use grpc_api::join::{
    IssueJoinTicketRequest, IssueJoinTicketResponse, IssueRejoinTicketRequest, IssueRejoinTicketResponse,
};
use key_derivation::{MasterSecret, cluster_id};
use node_secrets::{KeyServiceKey, NodeSecrets, OpenError, seal};
use secret::{MeasurementSecret, StateDiskKey};
use test_machines::{Machine, Technology, for_each_technology};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::*;
use crate::disk::StateDisk;
use crate::files::Stage;
use crate::request::tests::{key_service, operator_key, policy};
use crate::run::{Boot, boot};
use crate::tests::fixture::{Logs, TestNode, components};
use crate::tests::operator;

pub(crate) const MEASUREMENT_SECRET: [u8; 32] = *b"canary-measurement-secret-32byte";
pub(crate) const STATE_DISK_KEY: [u8; 32] = *b"canary-state-disk-key-32-bytes!!";
/// Of the disk of a node that says it was a control plane.
pub(crate) const CONTROL_PLANES_DISK_KEY: [u8; 32] = *b"canary-control-planes-disk-key!!";
/// Not the one that the disk was formatted with.
const TICKET_DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c33ff";
const TOKEN: &str = "canary.0123456789abcdef";
pub(crate) const SALT: [u8; 32] = [9; 32];

for_each_technology!(async:
    a_worker_joins_the_cluster_that_its_join_service_proves,
    init_and_join_at_once_take_the_node_once,
    a_join_service_that_belongs_to_no_cluster_is_refused,
    a_join_service_of_another_image_is_refused,
    another_operators_join_service_is_refused,
    a_ticket_for_another_cluster_is_refused,
    secrets_that_are_not_the_key_services_are_refused,
    a_join_service_that_requires_no_evidence_is_refused,
    a_worker_that_poses_as_join_service_is_refused,
    a_join_client_that_comes_second_lets_the_init_server_be,
    what_a_mirror_made_a_worker_fetch_is_gone_before_its_state_is_written,
    a_failed_worker_tries_kubeadm_again_and_then_gives_up,
);

pub(crate) fn cluster() -> ClusterId {
    let secret = MeasurementSecret::from_bytes(MEASUREMENT_SECRET);
    cluster_id(&secret, &MeasurementSalt::new(SALT))
}

/// Without secrets, which a join service does not have.
pub(crate) fn ticket() -> IssueJoinTicketResponse {
    IssueJoinTicketResponse {
        measurement_salt: SALT.to_vec(),
        api_server_endpoint: "10.42.1.100:6443".into(),
        token: TOKEN.into(),
        kubernetes_version: "v1.35.4".into(),
        kubernetes_components: components(),
        cluster_policy: policy(&operator_key(), cluster(), &components()),
        ..IssueJoinTicketResponse::default()
    }
}

/// What the key service seals to whoever attests.
fn secrets() -> NodeSecrets {
    NodeSecrets {
        disk: TICKET_DISK.parse().unwrap(),
        state_disk_key: StateDiskKey::from_bytes(STATE_DISK_KEY),
        measurement_secret: MeasurementSecret::from_bytes(MEASUREMENT_SECRET),
        policy: Digest::of(&ticket().cluster_policy),
        cluster_ca: b"certificate".to_vec().into(),
        control_plane: None,
    }
}

/// Gives the same ticket to everyone who is new and of this image, with secrets from this key service.
pub(crate) struct FakeJoinService {
    pub(crate) ticket: IssueJoinTicketResponse,
    pub(crate) key_service: KeyServiceKey,
    /// To the secrets of a node that comes back.
    pub(crate) change: fn(&mut NodeSecrets),
}

impl FakeJoinService {
    pub(crate) fn honest() -> Self {
        Self {
            ticket: ticket(),
            key_service: key_service(),
            change: |_| {},
        }
    }
}

#[tonic::async_trait]
impl Api for FakeJoinService {
    async fn issue_join_ticket(
        &self,
        request: Request<IssueJoinTicketRequest>,
    ) -> Result<Response<IssueJoinTicketResponse>, Status> {
        let presented = attested_tls::attested_node(&request, Purpose::Join)?.presented();
        let (to, binding) = (presented.parts.sealing_key.unwrap(), presented.binding());
        let sealed_secrets = seal(&secrets(), &to, &binding, &self.key_service).unwrap();
        let IssueJoinTicketRequest {
            is_control_plane,
            role_grant,
            node_name,
            node_address,
        } = request.into_inner();
        assert!(node_name.parse::<NodeName>().is_ok() && node_address.parse::<Ipv4Addr>().is_ok());
        assert!(!is_control_plane && role_grant.is_empty());
        Ok(Response::new(IssueJoinTicketResponse {
            sealed_secrets,
            ..self.ticket.clone()
        }))
    }

    async fn issue_rejoin_ticket(
        &self,
        request: Request<IssueRejoinTicketRequest>,
    ) -> Result<Response<IssueRejoinTicketResponse>, Status> {
        let presented = attested_tls::attested_node(&request, Purpose::Rejoin)?.presented();
        let (to, binding) = (presented.parts.sealing_key.unwrap(), presented.binding());
        let cluster_policy = self.ticket.cluster_policy.clone();
        let IssueRejoinTicketRequest {
            disk_uuid,
            is_control_plane,
        } = request.into_inner();
        let key = if is_control_plane {
            CONTROL_PLANES_DISK_KEY
        } else {
            STATE_DISK_KEY
        };
        let mut secrets = NodeSecrets {
            disk: disk_uuid.parse().unwrap(),
            state_disk_key: StateDiskKey::from_bytes(key),
            policy: Digest::of(&cluster_policy),
            ..secrets()
        };
        (self.change)(&mut secrets);
        let sealed_secrets = seal(&secrets, &to, &binding, &self.key_service).unwrap();
        Ok(Response::new(IssueRejoinTicketResponse {
            sealed_secrets,
            cluster_policy,
        }))
    }
}

pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    _machine: Box<dyn Machine>,
}

fn machine(joining: &TestNode) -> Box<dyn Machine> {
    joining.technology.boot_for(&joining.node.hints.operator).unwrap()
}

/// A control plane of our cluster.
pub(crate) fn member(joining: &TestNode) -> Box<dyn Machine> {
    let machine = machine(joining);
    let attester = machine.attester().unwrap();
    attester
        .measure_membership(&membership(NodeRole::ControlPlane))
        .unwrap();
    machine
}

/// A machine of our cluster that must not answer for a control plane.
pub(crate) fn worker(joining: &TestNode) -> Box<dyn Machine> {
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
    let honest = FakeJoinService::honest();
    serve(FakeJoinService { ticket, ..honest }, joining, machine).await
}

pub(crate) async fn serve(service: FakeJoinService, joining: &TestNode, machine: Box<dyn Machine>) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let attester = machine.attester().unwrap();
    let endpoint = Arc::new(Endpoint::new(Some(attester), joining.accepts(ExpectedMembership::New)));
    let server = tonic::transport::Server::builder()
        .add_service(ApiServer::new(service))
        .serve_with_incoming(incoming(listener, endpoint, &[Purpose::Join, Purpose::Rejoin]));
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
) -> Result<Ticket, AskError> {
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
        cluster_policy: policy(&operator_key(), ClusterId::new([7; 32]), &components()),
        ..ticket()
    };
    let error = check(technology, member, foreign).await.err().unwrap();
    assert!(
        matches!(error, AskError::Ticket(InvalidTicket::NotOurControlPlane { .. })),
        "{error}"
    );
}

/// There would be no Evidence that covers the sealing key.
async fn a_join_service_that_requires_no_evidence_is_refused(technology: &'static dyn Technology) {
    let join_service = Arc::new(OnceLock::new());
    let joining = TestNode::reaching(technology, NodeRole::Worker, None, join_service.clone());
    let machine = member(&joining);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    join_service.set(listener.local_addr().unwrap()).unwrap();
    let reason = "it takes anyone";
    let endpoint = Endpoint::new(Some(machine.attester().unwrap()), PeerPolicy::Unattested { reason });
    let server = tonic::transport::Server::builder()
        .add_service(ApiServer::new(FakeJoinService::honest()))
        .serve_with_incoming(incoming(listener, Arc::new(endpoint), &[Purpose::Join]));
    tokio::spawn(server);
    joining.node.obey_operator().await.unwrap();
    let endpoint = endpoint_for_members(&joining.node).unwrap();
    let somewhere = SocketAddrV4::new([10, 42, 1, 100].into(), 30090);
    let error = ask(&joining.node, &endpoint, somewhere).await.err().unwrap();
    assert!(matches!(error, AskError::NotAskedToAttest), "{error}");
}

/// Whoever has taken over the join service, but not the master secret, chooses no key for the node's disk.
async fn secrets_that_are_not_the_key_services_are_refused(technology: &'static dyn Technology) {
    let join_service = Arc::new(OnceLock::new());
    let joining = TestNode::reaching(technology, NodeRole::Worker, None, join_service.clone());
    let other = MasterSecret::new(Zeroizing::new(vec![9; 32]), vec![9; 32]).unwrap();
    let served = FakeJoinService {
        key_service: KeyServiceKey::of(&other),
        ..FakeJoinService::honest()
    };
    let service = serve(served, &joining, member(&joining)).await;
    join_service.set(service.address).unwrap();
    joining.node.obey_operator().await.unwrap();
    let endpoint = endpoint_for_members(&joining.node).unwrap();
    let somewhere = SocketAddrV4::new([10, 42, 1, 100].into(), 30090);
    let error = ask(&joining.node, &endpoint, somewhere).await.err().unwrap();
    assert!(
        matches!(
            error,
            AskError::Ticket(InvalidTicket::Secrets(OpenError::NotFromKeyService(_)))
        ),
        "{error}"
    );
    assert!(matches!(boot(&*joining.node.attester).unwrap(), Boot::New));
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
    let service = attester.membership().unwrap();
    let ticket = ticket::tests::sealed_to_this_node(ticket(), &secrets(), |ticket, session| {
        Ticket::parse(ticket, session, &service, &operator(), NodeRole::Worker).unwrap()
    });
    assert!(join_cluster(&joining.node, &ticket).await.is_err());
    assert_eq!(joining.programs.calls(), ["kubeadm join"; 3]);
}
