//! A node that was a member, against a join service in this process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use attestation::{MeasuringAttester, Membership};
use cluster_policy::{BelievedPolicy, SignedPolicy};
use cluster_types::{ClusterId, MeasurementSalt, NodeRole};
use disk_encryption::OpenError;
use key_derivation::MasterSecret;
use node_secrets::{ControlPlaneSecrets, KeyServiceKey, SHARED_FILES, SharedFile};
use operator_key::OperatorKey;
use test_machines::{Machine, Technology, for_each_technology};
use zeroize::Zeroizing;

use super::*;
use crate::files::NodeState;
use crate::join::tests::{FakeJoinService, SALT, STATE_DISK_KEY, cluster, member, serve, ticket, worker};
use crate::request::tests::{operator_key, policy_with_serial};
use crate::tests::fixture::{DISK, Logs, TestNode, components};

for_each_technology!(async:
    a_worker_opens_its_disk_and_is_the_member_that_it_was,
    a_key_that_does_not_open_the_disk_is_not_the_end,
    a_disk_that_cannot_be_opened_ends_the_node,
    a_machine_that_has_measured_a_membership_asks_nobody,
    a_node_that_never_became_a_member_does_not_come_back,
    a_worker_does_not_make_itself_a_control_plane,
    a_disk_of_another_cluster_is_not_used,
    a_policy_that_is_older_than_one_that_the_node_has_seen_is_refused,
    a_newer_policy_is_kept,
    a_policy_that_another_operator_signed_is_refused,
    secrets_released_by_another_policy_are_refused,
    a_key_for_another_disk_is_refused,
    a_key_from_another_key_service_is_refused,
    a_master_secret_that_nobody_requested_is_refused,
    a_worker_that_poses_as_join_service_brings_no_key,
    a_control_plane_of_another_cluster_brings_no_key,
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
            attester.membership().unwrap().is(&was_member()),
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
    Membership::new(cluster(), NodeRole::Worker)
}

impl Rebooted {
    /// What the worker stored when it became a member.
    async fn new(technology: &'static dyn Technology) -> Self {
        Self::having(technology, SALT, &ticket().cluster_policy).await
    }

    async fn having(technology: &'static dyn Technology, salt: [u8; 32], policy: &[u8]) -> Self {
        let join_service = Arc::new(OnceLock::new());
        let node = TestNode::reaching(technology, NodeRole::Worker, None, join_service.clone());
        // Files can be written by a machine that has measured its membership. This one stands for the same before the reboot.
        let before = TestNode::new(technology, NodeRole::Worker);
        let locked = before.node.lock.reserve(Owner::Join).unwrap();
        let locked = locked.measure(was_member()).await.unwrap();
        let hints = &node.node.hints;
        let (address, network) = (hints.this_node.address.ip(), hints.network.clone());
        let state = NodeState::new(NodeRole::Worker, MeasurementSalt::new(salt), address, network);
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
        rejoin(&self.node.node, self.disk.clone()).await
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
        refusal: Some(|| OpenDiskError::Open(OpenError::HeaderFile(std::io::ErrorKind::StorageFull.into()))),
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

/// Root on a worker has written another role before the reboot.
async fn a_worker_does_not_make_itself_a_control_plane(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let path = rebooted.node.file("run/state/constellation/node-state.json");
    let state = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, state.replace("\"Worker\"", "\"ControlPlane\"")).unwrap();
    let error = rebooted.rejoin_through(FakeJoinService::honest()).await.unwrap_err();
    assert!(matches!(error, RejoinError::NotAWorker), "{error}");
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

async fn a_newer_policy_is_kept(technology: &'static dyn Technology) {
    let rebooted = Rebooted::new(technology).await;
    let mut service = FakeJoinService::honest();
    service.ticket.cluster_policy = policy_with_serial(2, &operator_key(), cluster(), &components());
    let newer = service.ticket.cluster_policy.clone();
    rebooted.rejoin_through(service).await.unwrap();
    let stored = rebooted.node.file("run/state/constellation/policy/cluster-policy");
    assert_eq!(std::fs::read(stored).unwrap(), newer);
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
        change: |secrets| secrets.policy = digest::Digest::of(b"another"),
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
