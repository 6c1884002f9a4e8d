//! The join client against a join service in this process, inside attested TLS with real TPMs.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use attestation::Purpose;
use attestation_tpm::Membership;
use attested_tls::{Endpoint, incoming};
use cluster_types::{ClusterId, MeasurementSalt};
use grpc_api::join::api_server::{Api, ApiServer};
use grpc_api::join::{
    IssueJoinTicketRequest, IssueJoinTicketResponse, IssueRejoinTicketRequest, IssueRejoinTicketResponse,
};
use key_derivation::cluster_id;
use measurements::PcrIndex;
use secret::MeasurementSecret;
use test_tpm::SoftwareTpm;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use super::*;
use crate::files::Stage;
use crate::lock::{ClusterRegister, expected_register};
use crate::run::{Boot, boot};
use crate::tests::fixture::{DISK, Logs, TestNode, attester, components};

const MEASUREMENT_SECRET: [u8; 32] = *b"canary-measurement-secret-32byte";
const STATE_DISK_KEY: [u8; 32] = *b"canary-state-disk-key-32-bytes!!";
const TOKEN: &str = "canary.0123456789abcdef";
const SALT: [u8; 32] = [9; 32];

fn cluster() -> ClusterId {
    let secret = MeasurementSecret::from_bytes(MEASUREMENT_SECRET);
    cluster_id(&secret, &MeasurementSalt::new(SALT))
}

fn ticket() -> IssueJoinTicketResponse {
    IssueJoinTicketResponse {
        state_disk_key: STATE_DISK_KEY.to_vec(),
        measurement_salt: SALT.to_vec(),
        measurement_secret: MEASUREMENT_SECRET.to_vec(),
        kubelet_cert: b"certificate".to_vec(),
        api_server_endpoint: "10.42.1.100:6443".into(),
        token: TOKEN.into(),
        discovery_token_ca_cert_hash: format!("sha256:{}", "ab".repeat(32)),
        kubernetes_version: "v1.35.4".into(),
        kubernetes_components: components(),
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
        let request = request.into_inner();
        assert_eq!(request.disk_uuid, DISK);
        assert!(!request.is_control_plane);
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
    _tpm: SoftwareTpm,
}

/// A join service whose machine measured these events, in this order.
async fn service(joining: &TestNode, measured: &[(PcrIndex, [u8; 32])], ticket: IssueJoinTicketResponse) -> Service {
    let (attester, tpm) = attester();
    for (index, event) in measured {
        attester.with_tpm(|tpm| tpm.extend_with_event(*index, event)).unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = Arc::new(Endpoint::new(Some(attester.clone()), joining.accepts(Membership::New)));
    let server = tonic::transport::Server::builder()
        .add_service(ApiServer::new(FakeJoinService(ticket)))
        .serve_with_incoming(incoming(listener, endpoint, &[Purpose::Join]));
    tokio::spawn(server);
    Service { address, _tpm: tpm }
}

fn member() -> Vec<(PcrIndex, [u8; 32])> {
    vec![(PcrIndex::CLUSTER_ID, *cluster().as_bytes())]
}

async fn check(measured: &[(PcrIndex, [u8; 32])], ticket: IssueJoinTicketResponse) -> Result<Admission, AskError> {
    let join_service = Arc::new(OnceLock::new());
    let joining = TestNode::reaching(NodeRole::Worker, None, join_service.clone());
    let service = service(&joining, measured, ticket).await;
    join_service.set(service.address).unwrap();
    let endpoint = endpoint_for_members(&joining.node).unwrap();
    let somewhere = SocketAddrV4::new([10, 42, 1, 100].into(), 30090);
    let asked = ask(&joining.node, &endpoint, DISK.parse().unwrap(), somewhere).await;
    assert!(matches!(boot(&*joining.node.attester).unwrap(), Boot::New));
    asked
}

#[tokio::test]
async fn a_worker_joins_the_cluster_that_its_join_service_proves() {
    let logs = Logs::capture();
    let join_service = Arc::new(OnceLock::new());
    let joining = TestNode::reaching(NodeRole::Worker, None, join_service.clone());
    let (_, running) = joining.start().await;
    // The first rounds find nobody.
    let service = service(&joining, &member(), ticket()).await;
    join_service.set(service.address).unwrap();
    running.await.unwrap().unwrap();

    assert_eq!(joining.node.attester.read().unwrap(), expected_register(cluster()));
    assert_eq!(joining.disk.keys(), [STATE_DISK_KEY]);
    assert_eq!(joining.node.files.load_state().unwrap().stage, Stage::Member);
    assert!(!joining.file("run/state/constellation/master-secret.json").exists());
    assert!(joining.file("run/state/kubelet/pki/kubelet-serving.key").exists());
    assert_eq!(joining.programs.calls(), ["ip address", "ip link", "kubeadm join"]);
    logs.assert_free_of(&[b"canary", &MEASUREMENT_SECRET, &STATE_DISK_KEY, TOKEN.as_bytes()]);
}

#[tokio::test]
async fn init_and_join_at_once_take_the_node_once() {
    let join_service = Arc::new(OnceLock::new());
    let node = TestNode::reaching(NodeRole::Worker, None, join_service.clone());
    let service = service(&node, &member(), ticket()).await;
    join_service.set(service.address).unwrap();
    let (address, running) = node.start().await;
    let initialised = crate::tests::try_init(&node, address).await;
    if initialised {
        running.abort();
    } else {
        running.await.unwrap().unwrap();
    }
    let register = node.node.attester.read().unwrap();
    let owner = if initialised {
        crate::tests::cluster()
    } else {
        cluster()
    };
    assert_eq!(register, expected_register(owner));
    assert_eq!(node.disk.keys().len(), 1);
}

#[tokio::test]
async fn a_join_service_that_belongs_to_no_cluster_is_refused() {
    let error = check(&[], ticket()).await.err().unwrap();
    assert!(
        matches!(error, AskError::Handshake(HandshakeError::NotAffirmed(_))),
        "{error}"
    );
}

#[tokio::test]
async fn a_join_service_of_another_image_is_refused() {
    for register in [4, 9, 11, 12, 13] {
        let mut measured = member();
        measured.push((PcrIndex::new(register), [1; 32]));
        let error = check(&measured, ticket()).await.err().unwrap();
        assert!(
            matches!(error, AskError::Handshake(HandshakeError::NotAffirmed(_))),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_ticket_for_another_cluster_is_refused() {
    let foreign = IssueJoinTicketResponse {
        measurement_secret: vec![7; 32],
        ..ticket()
    };
    let error = check(&member(), foreign).await.err().unwrap();
    assert!(
        matches!(error, AskError::Ticket(InvalidTicket::AnotherCluster { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_join_client_that_comes_second_lets_the_init_server_be() {
    let join_service = Arc::new(OnceLock::new());
    let joining = TestNode::reaching(NodeRole::Worker, None, join_service.clone());
    let service = service(&joining, &member(), ticket()).await;
    join_service.set(service.address).unwrap();
    let _claim = joining.node.lock.claim(Owner::Init).unwrap();
    assert_eq!(join(&joining.node).await.unwrap(), Joined::InitTookOver);
    assert!(joining.disk.keys().is_empty());
    assert!(matches!(boot(&*joining.node.attester).unwrap(), Boot::New));
}

/// It may have filled the disk.
#[tokio::test]
async fn what_a_mirror_made_a_worker_fetch_is_gone_before_its_state_is_written() {
    let join_service = Arc::new(OnceLock::new());
    let joining = TestNode::reaching(NodeRole::Worker, None, join_service.clone());
    let service = service(&joining, &member(), ticket()).await;
    join_service.set(service.address).unwrap();
    let fetched = joining.file("run/state/components/unwanted");
    std::fs::create_dir_all(fetched.parent().unwrap()).unwrap();
    std::fs::write(&fetched, "").unwrap();
    // Nothing can be written over a folder.
    std::fs::create_dir_all(joining.file("run/state/constellation/node-state.json")).unwrap();
    let error = join(&joining.node).await.unwrap_err();
    assert!(matches!(error, BecomeMemberError::Files(_)), "{error}");
    assert!(!fetched.exists());
}

#[tokio::test]
async fn a_failed_worker_tries_kubeadm_again_and_then_gives_up() {
    tokio::time::pause();
    let joining = TestNode::failing(NodeRole::Worker, Some("kubeadm"));
    let service = expected_register(cluster());
    let pcrs = measurements::PcrValues::from([(PcrIndex::CLUSTER_ID, service)]);
    let ticket = Ticket::parse(ticket(), &pcrs, NodeRole::Worker).unwrap();
    assert!(join_cluster(&joining.node, &ticket).await.is_err());
    assert_eq!(joining.programs.calls(), ["kubeadm join"; 3]);
}
