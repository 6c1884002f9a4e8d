//! A node that was a member, against a join service in this process, and the operator.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use attestation::{ExpectedMembership, MeasuringAttester, Membership};
use attested_tls::{AttestedNode, HandshakeError, PeerPolicy, channel};
use cluster_policy::{BelievedPolicy, SignedPolicy};
use cluster_types::{ClusterId, MeasurementSalt, NodeRole};
use digest::Digest;
use disk_encryption::OpenError;
use grpc_api::recover::api_client::ApiClient;
use grpc_api::recover::{DescribeRequest, RecoverRequest};
use key_derivation::MasterSecret;
use node_secrets::{ControlPlaneSecrets, KeyServiceKey, SHARED_FILES, SharedFile};
use operator_key::{OperatorKey, SignatureDomain};
use secret::StateDiskKey;
use test_machines::{Machine, Technology, for_each_technology};
use tonic::transport::Channel;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::*;
use crate::files::NodeState;
use crate::join::tests::{
    CONTROL_PLANES_DISK_KEY, FakeJoinService, MEASUREMENT_SECRET, SALT, STATE_DISK_KEY, cluster, member, serve, ticket,
    worker,
};
use crate::request::tests::{operator_key, policy_with_serial};
use crate::tests::fixture::{DISK, Logs, TestNode, components};

for_each_technology!(async:
    a_worker_opens_its_disk_and_is_the_member_that_it_was,
    a_control_plane_comes_back_through_another_one,
    a_key_that_does_not_open_the_disk_is_not_the_end,
    a_disk_that_cannot_be_opened_ends_the_node,
    a_machine_that_has_measured_a_membership_asks_nobody,
    a_node_that_never_became_a_member_does_not_come_back,
    a_worker_does_not_make_itself_a_control_plane,
    a_disk_of_another_cluster_is_not_used,
    a_policy_that_is_older_than_one_that_the_node_has_seen_is_refused,
    a_newer_policy_is_kept,
    an_operator_with_an_older_policy_puts_none_out_of_force,
    an_operator_with_another_policy_of_the_same_serial_is_refused,
    a_policy_that_another_operator_signed_is_refused,
    secrets_released_by_another_policy_are_refused,
    a_key_for_another_disk_is_refused,
    a_key_from_another_key_service_is_refused,
    a_master_secret_that_nobody_requested_is_refused,
    a_worker_that_poses_as_join_service_brings_no_key,
    a_control_plane_of_another_cluster_brings_no_key,
    the_operator_brings_a_control_plane_back,
    the_operator_brings_a_worker_back,
    another_operator_opens_nothing,
    a_signature_for_another_session_opens_nothing,
    who_requires_no_evidence_opens_nothing,
    what_the_operator_sends_is_parsed,
    the_operator_may_bring_another_key_after_a_wrong_one,
    the_operator_is_told_why_the_node_cannot_come_back,
    nobody_recovers_a_node_in_a_session_for_another_purpose,
);

/// Keeps the keys that it was given, and takes none of the first ones.
#[derive(Default)]
struct FakeDisk {
    /// Which the node measures before it mounts anything.
    attester: Option<Arc<dyn MeasuringAttester>>,
    refusals: usize,
    /// A wrong key if there is none.
    refusal: Option<fn() -> OpenDiskError>,
    keys: Mutex<Vec<[u8; 32]>>,
    mounted: AtomicBool,
}

impl ClosedDisk for FakeDisk {
    fn uuid(&self) -> DiskUuid {
        DISK.parse().unwrap()
    }

    fn open(&self, key: &StateDiskKey) -> Result<(), OpenDiskError> {
        let mut keys = self.keys.lock().unwrap();
        keys.push(*key.expose());
        if keys.len() > self.refusals {
            Ok(())
        } else {
            Err(self.refusal.unwrap_or(|| OpenDiskError::WrongKey)())
        }
    }

    fn mount(&self) -> Result<(), OpenDiskError> {
        let attester = self.attester.as_ref().unwrap();
        assert!(
            !attester.membership().unwrap().is_new(),
            "mounted before it was measured"
        );
        self.mounted.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// A rebooted worker, and where its join service will be.
struct Rebooted {
    node: TestNode,
    disk: Arc<FakeDisk>,
    join_service: Arc<OnceLock<std::net::SocketAddr>>,
}

fn believed(policy: &[u8]) -> BelievedPolicy {
    SignedPolicy::parse(policy).unwrap().believe(|_| true).unwrap()
}

fn was_member() -> Membership {
    was(NodeRole::Worker)
}

fn was(role: NodeRole) -> Membership {
    Membership::new(cluster(), role)
}

async fn listener() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// At the other end of a session with a node that waits.
struct Operator {
    client: ApiClient<Channel>,
    node: AttestedNode,
}

impl Operator {
    async fn calls(rebooted: &Rebooted, address: std::net::SocketAddr) -> Self {
        let opened = Self::open(rebooted, address, Purpose::Recover).await;
        opened.unwrap()
    }

    async fn open(
        rebooted: &Rebooted,
        address: std::net::SocketAddr,
        purpose: Purpose,
    ) -> Result<Self, HandshakeError> {
        let endpoint = Endpoint::new(None, rebooted.node.accepts(ExpectedMembership::New));
        let session = channel(&endpoint, purpose, &address.to_string()).await?;
        Ok(Self {
            client: ApiClient::new(session.channel),
            node: session.node.unwrap(),
        })
    }

    fn sign(&self, operator: &OperatorKey) -> Vec<u8> {
        operator.sign(SignatureDomain::Recovery, self.node.presented().binding().as_bytes())
    }

    /// What brings a member of this role back.
    fn request(&self, role: NodeRole) -> RecoverRequest {
        RecoverRequest {
            operator_signature: self.sign(&operator_key()),
            state_disk_key: STATE_DISK_KEY.to_vec(),
            measurement_secret: MEASUREMENT_SECRET.to_vec(),
            cluster_policy: ticket().cluster_policy,
            is_control_plane: role == NodeRole::ControlPlane,
        }
    }

    async fn send(&mut self, request: RecoverRequest) -> Result<(), Status> {
        self.client.recover(request).await.map(drop)
    }
}

impl Rebooted {
    /// What the worker stored when it became a member.
    async fn new(technology: &'static dyn Technology) -> Self {
        Self::having(technology, SALT, &ticket().cluster_policy).await
    }

    async fn control_plane(technology: &'static dyn Technology) -> Self {
        Self::with(technology, NodeRole::ControlPlane, SALT, &ticket().cluster_policy).await
    }

    async fn having(technology: &'static dyn Technology, salt: [u8; 32], policy: &[u8]) -> Self {
        Self::with(technology, NodeRole::Worker, salt, policy).await
    }

    async fn with(technology: &'static dyn Technology, role: NodeRole, salt: [u8; 32], policy: &[u8]) -> Self {
        let join_service = Arc::new(OnceLock::new());
        let mut node = TestNode::reaching(technology, role, None, join_service.clone());
        node.is_not_the_api_server();
        // Files can be written by a machine that has measured its membership. This one stands for the same before the reboot.
        let before = TestNode::new(technology, role);
        let locked = before.node.lock.reserve(Owner::Join).unwrap();
        let locked = locked.measure(was(role)).await.unwrap();
        let hints = &node.node.hints;
        let (address, network) = (hints.this_node.address.ip(), hints.network.clone());
        let state = NodeState::new(role, MeasurementSalt::new(salt), address, network);
        node.node.files.write_state(&locked, &state.as_member()).unwrap();
        node.node.files.write_policy(&locked, &believed(policy)).unwrap();
        let mut rebooted = Self {
            node,
            disk: Arc::default(),
            join_service,
        };
        rebooted.give(FakeDisk::default());
        rebooted
    }

    fn give(&mut self, disk: FakeDisk) {
        let attester = Some(self.node.node.attester.clone());
        self.disk = Arc::new(FakeDisk { attester, ..disk });
    }

    async fn rejoin(&self) -> Result<(), RejoinError> {
        let (listener, _) = listener().await;
        rejoin(&self.node.node, self.disk.clone(), listener).await
    }

    /// The operator does this while the node waits, and then the node ends.
    async fn recover<T>(&self, operator: impl AsyncFnOnce(Operator) -> T) -> (Result<(), RejoinError>, T) {
        let (listener, address) = listener().await;
        let rejoined = rejoin(&self.node.node, self.disk.clone(), listener);
        tokio::join!(rejoined, async { operator(Operator::calls(self, address).await).await })
    }

    /// The operator does this while the node waits, and then it still waits.
    async fn must_wait<T>(&self, operator: impl AsyncFnOnce(Operator) -> T) -> T {
        let (listener, address) = listener().await;
        let done = async { operator(Operator::calls(self, address).await).await };
        let done = tokio::select! {
            ended = rejoin(&self.node.node, self.disk.clone(), listener) => panic!("the node has ended: {ended:?}"),
            done = done => done,
        };
        assert!(self.measured_nothing());
        done
    }

    async fn rejoin_through(&self, service: FakeJoinService) -> Result<(), RejoinError> {
        let service = serve(service, &self.node, member(&self.node)).await;
        self.join_service.set(service.address).unwrap();
        self.rejoin().await
    }

    /// Of one session, in which the node gets no ticket.
    async fn ask(&self, service: FakeJoinService, machine: fn(&TestNode) -> Box<dyn Machine>) -> AskError {
        let service = serve(service, &self.node, machine(&self.node)).await;
        self.join_service.set(service.address).unwrap();
        self.node.node.obey_operator().await.unwrap();
        let endpoint = endpoint_for_members(&self.node.node).unwrap();
        let somewhere = SocketAddrV4::new([10, 42, 1, 100].into(), 30090);
        let asked = ask(&self.node.node, &endpoint, self.disk.uuid(), somewhere).await;
        asked.err().unwrap()
    }

    fn keys(&self) -> Vec<[u8; 32]> {
        self.disk.keys.lock().unwrap().clone()
    }

    fn stored_policy(&self) -> Vec<u8> {
        std::fs::read(self.node.file("run/state/constellation/policy/cluster-policy")).unwrap()
    }

    fn measured_nothing(&self) -> bool {
        self.node.node.attester.membership().unwrap().is_new()
    }
}

async fn a_worker_opens_its_disk_and_is_the_member_that_it_was(technology: &'static dyn Technology) {
    let logs = Logs::capture();
    let rebooted = Rebooted::new(technology).await;
    rebooted.rejoin_through(FakeJoinService::honest()).await.unwrap();
    assert_eq!(rebooted.keys(), [STATE_DISK_KEY]);
    assert!(rebooted.disk.mounted.load(Ordering::Relaxed));
    assert!(rebooted.node.node.attester.membership().unwrap().is(&was_member()));
    let measured = rebooted.node.node.attester.statements().unwrap().operator;
    assert!(measured.is(&operator_key().public()));
    logs.assert_free_of(&[b"canary", &STATE_DISK_KEY]);
}

async fn a_control_plane_comes_back_through_another_one(technology: &'static dyn Technology) {
    let rebooted = Rebooted::control_plane(technology).await;
    rebooted.rejoin_through(FakeJoinService::honest()).await.unwrap();
    assert_eq!(rebooted.keys(), [CONTROL_PLANES_DISK_KEY]);
    let membership = rebooted.node.node.attester.membership().unwrap();
    assert!(membership.is(&was(NodeRole::ControlPlane)));
}

async fn a_key_that_does_not_open_the_disk_is_not_the_end(technology: &'static dyn Technology) {
    let mut rebooted = Rebooted::new(technology).await;
    rebooted.give(FakeDisk {
        refusals: 1,
        ..FakeDisk::default()
    });
    rebooted.rejoin_through(FakeJoinService::honest()).await.unwrap();
    assert_eq!(rebooted.keys().len(), 2);
}

async fn a_disk_that_cannot_be_opened_ends_the_node(technology: &'static dyn Technology) {
    let mut rebooted = Rebooted::new(technology).await;
    rebooted.give(FakeDisk {
        refusals: 1,
        refusal: Some(|| OpenDiskError::Open(OpenError::HeaderFile(io::ErrorKind::StorageFull.into()))),
        ..FakeDisk::default()
    });
    let error = rebooted.rejoin_through(FakeJoinService::honest()).await.unwrap_err();
    assert!(matches!(error, RejoinError::Disk(_)), "{error}");
    assert!(rebooted.measured_nothing());
}

async fn a_machine_that_has_measured_a_membership_asks_nobody(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    rebooted.node.node.attester.measure_membership(&was_member()).unwrap();
    let error = rebooted.rejoin().await.unwrap_err();
    assert!(matches!(error, RejoinError::AlreadyMember), "{error}");
}

async fn a_node_that_never_became_a_member_does_not_come_back(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let path = rebooted.node.file("run/state/constellation/node-state.json");
    let state = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, state.replace("\"member\"", "\"joining\"")).unwrap();
    let error = rebooted.rejoin_through(FakeJoinService::honest()).await.unwrap_err();
    assert!(matches!(error, RejoinError::Interrupted), "{error}");
}

/// Root on a worker has written another role before the reboot. The platform cannot help it: with that role, the node would get another key.
async fn a_worker_does_not_make_itself_a_control_plane(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let path = rebooted.node.file("run/state/constellation/node-state.json");
    let state = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, state.replace("\"Worker\"", "\"ControlPlane\"")).unwrap();
    let error = rebooted.rejoin_through(FakeJoinService::honest()).await.unwrap_err();
    assert!(matches!(error, RejoinError::AnotherRole { .. }), "{error}");
    assert!(rebooted.node.node.attester.membership().unwrap().is(&was_member()));
}

async fn a_disk_of_another_cluster_is_not_used(technology: &'static dyn Technology) {
    let rebooted = Rebooted::having(technology, [7; 32], &ticket().cluster_policy).await;
    let error = rebooted.rejoin_through(FakeJoinService::honest()).await.unwrap_err();
    assert!(matches!(error, RejoinError::AnotherCluster { .. }), "{error}");
}

async fn a_policy_that_is_older_than_one_that_the_node_has_seen_is_refused(technology: &'static dyn Technology) {
    let newer = policy_with_serial(2, &operator_key(), cluster(), &components());
    let rebooted = Rebooted::having(technology, SALT, &newer).await;
    let error = rebooted.rejoin_through(FakeJoinService::honest()).await.unwrap_err();
    assert!(matches!(error, RejoinError::Policy(_)), "{error}");
}

/// Their workspace is a backup. What the node needs to come back does not depend on the policy.
async fn an_operator_with_an_older_policy_puts_none_out_of_force(technology: &'static dyn Technology) {
    let newer = policy_with_serial(2, &operator_key(), cluster(), &components());
    let rebooted = Rebooted::with(technology, NodeRole::ControlPlane, SALT, &newer).await;
    let (rejoined, sent) = rebooted
        .recover(async |mut operator| operator.send(operator.request(NodeRole::ControlPlane)).await)
        .await;
    rejoined.unwrap();
    sent.unwrap();
    assert_eq!(rebooted.stored_policy(), newer);
}

/// Which of the two counts would depend on who asks.
async fn an_operator_with_another_policy_of_the_same_serial_is_refused(technology: &'static dyn Technology) {
    let mut listed = components();
    listed[0].hash = digest::oci::format(&Digest::of(b"another kubelet"));
    let other = policy_with_serial(1, &operator_key(), cluster(), &listed);
    let rebooted = Rebooted::with(technology, NodeRole::ControlPlane, SALT, &other).await;
    let (rejoined, sent) = rebooted
        .recover(async |mut operator| operator.send(operator.request(NodeRole::ControlPlane)).await)
        .await;
    let error = rejoined.unwrap_err();
    assert!(matches!(error, RejoinError::Policy(_)), "{error}");
    assert!(sent.unwrap_err().message().contains("the cluster's policy is refused"));
}

async fn a_newer_policy_is_kept(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let mut service = FakeJoinService::honest();
    service.ticket.cluster_policy = policy_with_serial(2, &operator_key(), cluster(), &components());
    let newer = service.ticket.cluster_policy.clone();
    rebooted.rejoin_through(service).await.unwrap();
    assert_eq!(rebooted.stored_policy(), newer);
}

async fn a_policy_that_another_operator_signed_is_refused(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let mut service = FakeJoinService::honest();
    let other = OperatorKey::from_seed(&[1; 32]);
    service.ticket.cluster_policy = policy_with_serial(1, &other, cluster(), &components());
    let error = rebooted.ask(service, member).await;
    assert!(matches!(error, AskError::Ticket(InvalidTicket::Policy(_))), "{error}");
}

/// The key service released them by another policy than the one that comes with them.
async fn secrets_released_by_another_policy_are_refused(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let service = FakeJoinService {
        change: |secrets| secrets.policy = Digest::of(b"another"),
        ..FakeJoinService::honest()
    };
    let error = rebooted.ask(service, member).await;
    assert!(
        matches!(error, AskError::Ticket(InvalidTicket::AnotherPolicy)),
        "{error}"
    );
}

async fn a_key_for_another_disk_is_refused(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let service = FakeJoinService {
        change: |secrets| secrets.disk = "3f2504e0-4f89-11d3-9a0c-0305e82c33ee".parse().unwrap(),
        ..FakeJoinService::honest()
    };
    let error = rebooted.ask(service, member).await;
    assert!(
        matches!(error, AskError::Ticket(InvalidTicket::AnotherDisk { .. })),
        "{error}"
    );
}

async fn a_key_from_another_key_service_is_refused(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let other = MasterSecret::new(Zeroizing::new(vec![9; 32]), vec![9; 32]).unwrap();
    let service = FakeJoinService {
        key_service: KeyServiceKey::of(&other),
        ..FakeJoinService::honest()
    };
    let error = rebooted.ask(service, member).await;
    assert!(matches!(error, AskError::Ticket(InvalidTicket::Secrets(_))), "{error}");
}

async fn a_master_secret_that_nobody_requested_is_refused(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let service = FakeJoinService {
        change: |secrets| {
            let content = || Zeroizing::new(b"content".to_vec());
            secrets.control_plane = Some(ControlPlaneSecrets {
                master_secret: MasterSecret::new(Zeroizing::new(vec![9; 32]), vec![9; 32]).unwrap(),
                files: SHARED_FILES
                    .map(|name| SharedFile {
                        name,
                        content: content(),
                    })
                    .into(),
            });
        },
        ..FakeJoinService::honest()
    };
    let error = rebooted.ask(service, member).await;
    assert!(
        matches!(error, AskError::Ticket(InvalidTicket::UnwantedMasterSecret)),
        "{error}"
    );
}

async fn a_worker_that_poses_as_join_service_brings_no_key(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let error = rebooted.ask(FakeJoinService::honest(), worker).await;
    assert!(
        matches!(error, AskError::Ticket(InvalidTicket::NotOurControlPlane { .. })),
        "{error}"
    );
}

async fn a_control_plane_of_another_cluster_brings_no_key(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let mut service = FakeJoinService::honest();
    let other = ClusterId::new([7; 32]);
    service.ticket.cluster_policy = policy_with_serial(1, &operator_key(), other, &components());
    let error = rebooted.ask(service, member).await;
    assert!(
        matches!(error, AskError::Ticket(InvalidTicket::NotOurControlPlane { .. })),
        "{error}"
    );
}

async fn comes_back_as(role: NodeRole, rebooted: Rebooted) {
    let logs = Logs::capture();
    let (rejoined, sent) = rebooted
        .recover(async |mut operator| {
            let described = operator.client.describe(DescribeRequest {}).await.unwrap();
            assert_eq!(described.into_inner().disk_uuid, DISK);
            operator.send(operator.request(role)).await
        })
        .await;
    rejoined.unwrap();
    sent.unwrap();
    assert_eq!(rebooted.keys(), [STATE_DISK_KEY]);
    assert!(rebooted.node.node.attester.membership().unwrap().is(&was(role)));
    logs.assert_free_of(&[b"canary", &STATE_DISK_KEY, &MEASUREMENT_SECRET]);
}

async fn the_operator_brings_a_control_plane_back(technology: &'static dyn Technology) {
    comes_back_as(NodeRole::ControlPlane, Rebooted::control_plane(technology).await).await;
}

async fn the_operator_brings_a_worker_back(technology: &'static dyn Technology) {
    comes_back_as(NodeRole::Worker, Rebooted::new(technology).await).await;
}

async fn another_operator_opens_nothing(technology: &'static dyn Technology) {
    let rebooted = Rebooted::control_plane(technology).await;
    let other = OperatorKey::from_seed(&[1; 32]);
    let refused = rebooted
        .must_wait(async |mut operator| {
            let operator_signature = operator.sign(&other);
            let request = operator.request(NodeRole::ControlPlane);
            let request = RecoverRequest {
                operator_signature,
                ..request
            };
            operator.send(request).await.unwrap_err()
        })
        .await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(rebooted.keys().is_empty());
}

/// Someone in between passes on what the operator sent to another node, or to this one before.
async fn a_signature_for_another_session_opens_nothing(technology: &'static dyn Technology) {
    let rebooted = Rebooted::control_plane(technology).await;
    let earlier = rebooted
        .must_wait(async |operator| operator.request(NodeRole::ControlPlane))
        .await;
    let refused = rebooted
        .must_wait(async |mut operator| operator.send(earlier).await.unwrap_err())
        .await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(rebooted.keys().is_empty());
}

/// There is nothing that a signature could be tied to, not even by the operator.
async fn who_requires_no_evidence_opens_nothing(technology: &'static dyn Technology) {
    let rebooted = Rebooted::control_plane(technology).await;
    let (listener, address) = listener().await;
    let careless = Endpoint::new(
        None,
        PeerPolicy::Unattested {
            reason: "it trusts anyone",
        },
    );
    let refused = async {
        let asked = Operator::calls(&rebooted, address)
            .await
            .request(NodeRole::ControlPlane);
        let session = channel(&careless, Purpose::Recover, &address.to_string()).await;
        let mut client = ApiClient::new(session.unwrap().channel);
        client.recover(asked).await.unwrap_err()
    };
    let refused = tokio::select! {
        ended = rejoin(&rebooted.node.node, rebooted.disk.clone(), listener) => panic!("{ended:?}"),
        refused = refused => refused,
    };
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("no evidence of this node"), "{refused}");
    assert!(rebooted.keys().is_empty());
}

async fn what_the_operator_sends_is_parsed(technology: &'static dyn Technology) {
    type Change = fn(&mut RecoverRequest);
    let changes: [(&str, Change); 3] = [
        ("state_disk_key", |request| request.state_disk_key.push(0)),
        ("measurement_secret", |request| request.measurement_secret.push(0)),
        ("cluster_policy", |request| {
            let other = OperatorKey::from_seed(&[1; 32]);
            request.cluster_policy = policy_with_serial(1, &other, cluster(), &components());
        }),
    ];
    let rebooted = Rebooted::control_plane(technology).await;
    rebooted
        .must_wait(async |mut operator| {
            for (field, change) in changes {
                let mut request = operator.request(NodeRole::ControlPlane);
                change(&mut request);
                let refused = operator.send(request).await.unwrap_err();
                assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
                assert!(refused.message().starts_with(field), "{refused}");
            }
        })
        .await;
    assert!(rebooted.keys().is_empty());
}

async fn the_operator_may_bring_another_key_after_a_wrong_one(technology: &'static dyn Technology) {
    let mut rebooted = Rebooted::control_plane(technology).await;
    rebooted.give(FakeDisk {
        refusals: 1,
        ..FakeDisk::default()
    });
    let (rejoined, refused) = rebooted
        .recover(async |mut operator| {
            let refused = operator.send(operator.request(NodeRole::ControlPlane)).await;
            operator.send(operator.request(NodeRole::ControlPlane)).await.unwrap();
            refused.unwrap_err()
        })
        .await;
    rejoined.unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("the key does not open"), "{refused}");
}

async fn the_operator_is_told_why_the_node_cannot_come_back(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let (rejoined, refused) = rebooted
        .recover(async |mut operator| operator.send(operator.request(NodeRole::ControlPlane)).await)
        .await;
    let (error, refused) = (rejoined.unwrap_err(), refused.unwrap_err());
    assert!(matches!(error, RejoinError::AnotherRole { .. }), "{error}");
    assert_eq!(refused.message(), error.to_string());
}

async fn nobody_recovers_a_node_in_a_session_for_another_purpose(technology: &'static dyn Technology) {
    let rebooted = Rebooted::control_plane(technology).await;
    let (listener, address) = listener().await;
    let opened = tokio::select! {
        ended = rejoin(&rebooted.node.node, rebooted.disk.clone(), listener) => panic!("{ended:?}"),
        opened = Operator::open(&rebooted, address, Purpose::Init) => opened,
    };
    // It is cut off, because that purpose is not offered.
    assert!(matches!(opened.err(), Some(HandshakeError::Io(_))));
}
