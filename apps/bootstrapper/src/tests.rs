//! The init server as the CLI sees it: attested TLS with a machine of each technology, and everything up to the kubeconfig.

pub(crate) mod fixture;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use attestation::{ExpectedMembership, Membership, Purpose};
use attested_tls::{Endpoint, channel};
use cluster_types::{ClusterId, NodeRole, OperatorPublicKey};
use digest::Digest;
use grpc_api::init::api_client::ApiClient;
use grpc_api::init::init_response::Kind;
use grpc_api::init::{InitRequest as InitMessage, InitResponse};
use key_derivation::DiskOwner;
use node_secrets::SHARED_FILES;
use operator_key::OperatorKey;
use test_machines::{Technology, for_each_technology};
use tonic::{Code, Status, Streaming};

use self::fixture::{DISK, INIT_SECRET, JOURNAL, KUBECONFIG, Logs, TestNode, components};
use crate::deploy::keep_deployed;
use crate::files::{NodeState, Stage};
use crate::lock::Owner;
use crate::node::OperatorError;
use crate::request::InitRequest;
use crate::request::tests::{Example, operator_key, policy};
use crate::resume::ResumeError;
use crate::run::{Boot, NodeError, boot};

for_each_technology!(async:
    a_node_becomes_the_first_of_a_cluster,
    a_wrong_secret_changes_nothing_and_shows_nothing,
    a_failure_is_told_with_the_journal_and_ends_the_node,
    a_wrong_component_fails_before_kubeadm_runs,
    the_same_request_finds_what_it_started_and_another_is_refused,
    a_node_that_is_joining_refuses_init,
    a_node_that_obeys_an_operator_takes_no_other_ones_secret,
    a_bootstrapper_that_starts_again_goes_on_and_obeys_nobody_else,
    a_member_that_has_not_measured_whom_it_obeys_ends,
    an_invalid_request_is_explained_to_who_has_the_secret,
    a_member_that_boots_again_gets_its_address_and_its_kubelet,
    the_first_node_deploys_once_kubeadm_is_done,
    a_node_whose_services_cannot_be_applied_ends,
    a_worker_that_boots_again_deploys_nothing,
    a_program_that_was_changed_is_replaced_before_the_kubelet_starts,
    a_node_starts_nothing_that_its_operator_did_not_sign,
    a_policy_of_another_operator_or_cluster_pins_nothing,
    what_is_deployed_is_applied_again_and_again,
);

/// Of a cluster whose components the mirror of tests has.
fn example() -> Example {
    Example {
        components: components(),
        ..Example::default()
    }
}

fn message() -> InitMessage {
    example().message()
}

pub(crate) fn cluster() -> ClusterId {
    InitRequest::parse(message()).unwrap().cluster
}

pub(crate) fn first_of_cluster() -> Membership {
    Membership::new(cluster(), NodeRole::ControlPlane)
}

/// Whose master secret the requests of tests hold.
pub(crate) fn operator() -> OperatorPublicKey {
    operator_key().public()
}

fn control_plane(technology: &'static dyn Technology) -> TestNode {
    TestNode::new(technology, NodeRole::ControlPlane)
}

async fn call(node: &TestNode, address: SocketAddr, message: InitMessage) -> Result<Streaming<InitResponse>, Status> {
    call_as(node, ExpectedMembership::New, address, message).await
}

/// The CLI: it attests nothing and wants the node to be of the right image.
async fn call_as(
    node: &TestNode,
    membership: ExpectedMembership,
    address: SocketAddr,
    message: InitMessage,
) -> Result<Streaming<InitResponse>, Status> {
    let cli = Endpoint::new(None, node.accepts(membership));
    let session = channel(&cli, Purpose::Init, &address.to_string()).await.unwrap();
    assert!(session.node.is_some());
    Ok(ApiClient::new(session.channel).init(message).await?.into_inner())
}

/// Whether the node became the first of a cluster; refused and cut off both mean that it did not.
pub(crate) async fn try_init(node: &TestNode, address: SocketAddr) -> bool {
    let cli = Endpoint::new(None, node.accepts(ExpectedMembership::New));
    let Ok(session) = channel(&cli, Purpose::Init, &address.to_string()).await else {
        return false;
    };
    match ApiClient::new(session.channel).init(message()).await {
        Ok(stream) => matches!(collect(stream.into_inner()).await.last(), Some(Kind::InitSuccess(_))),
        Err(_) => false,
    }
}

async fn collect(mut stream: Streaming<InitResponse>) -> Vec<Kind> {
    let mut kinds = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        kinds.extend(message.kind);
    }
    kinds
}

async fn a_node_becomes_the_first_of_a_cluster(technology: &'static dyn Technology) {
    let logs = Logs::capture();
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    let events = collect(call(&node, address, message()).await.unwrap()).await;
    running.abort();

    let Some(Kind::InitSuccess(success)) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!(success.kubeconfig, KUBECONFIG.as_bytes());
    assert_eq!(success.cluster_id, cluster().as_bytes());
    assert_eq!(events.len(), 7, "six steps and the success: {events:?}");

    assert!(node.node.attester.membership().unwrap().is(&first_of_cluster()));
    let request = InitRequest::parse(message()).unwrap();
    let owner = DiskOwner {
        cluster: cluster(),
        machine: *node.node.attester.identity().as_bytes(),
        role: NodeRole::ControlPlane,
    };
    let kek = request.master_secret.kek();
    let disk_key = *kek.state_disk_key(DISK.parse().unwrap(), &owner).expose();
    assert_eq!(node.disk.keys(), [disk_key]);
    assert_eq!(node.node.files.load_state().unwrap().stage, Stage::Member);
    let secret = node.file("run/state/constellation/master-secret.json");
    assert_eq!(fs::read_to_string(&secret).unwrap(), *request.master_secret.to_json());
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o400);
    for name in SHARED_FILES {
        let copy = node.file(&format!("run/state/constellation/shared-files/{name}"));
        let original = node.file(&format!("etc/kubernetes/pki/{name}"));
        assert_eq!(fs::read(&copy).unwrap(), fs::read(original).unwrap());
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o400);
    }
    for (folder, mode) in [
        // Its group, the join service's, is the group of the socket that the key service makes there.
        ("key-service", 0o2750),
        ("key-policy", 0o700),
        ("policy", 0o700),
        ("shared-files", 0o700),
        ("shared-files/etcd", 0o700),
    ] {
        let path = node.file(&format!("run/state/constellation/{folder}"));
        let actual = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(actual & 0o7777, mode, "{folder}");
    }
    for store in ["policy/cluster-policy", "key-policy/cluster-policy"] {
        let store = node.file(&format!("run/state/constellation/{store}"));
        assert_eq!(fs::read(store).unwrap(), request.policy.as_bytes());
    }
    assert_eq!(fs::read(node.file("run/state/bin/kubelet")).unwrap(), b"kubelet");
    let measurement_secret = request.master_secret.kek().measurement_secret();
    logs.assert_free_of(&[
        b"canary",
        INIT_SECRET,
        KUBECONFIG.as_bytes(),
        &disk_key,
        request.master_secret.expose_key(),
        measurement_secret.expose(),
    ]);
}

async fn a_wrong_secret_changes_nothing_and_shows_nothing(technology: &'static dyn Technology) {
    let logs = Logs::capture();
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    for secret in [&b""[..], b"canary init secreT", b"wrong"] {
        let wrong = InitMessage {
            init_secret: secret.to_vec(),
            ..message()
        };
        let refusal = call(&node, address, wrong).await.unwrap_err();
        assert_eq!(
            (refusal.code(), refusal.message()),
            (Code::PermissionDenied, "init refused")
        );
    }
    assert!(!node.programs.calls().contains(&"journalctl --no-pager".to_owned()));
    assert!(matches!(boot(&*node.node.attester).unwrap(), Boot::New));
    assert!(node.disk.keys().is_empty());

    // The lock is still free.
    let events = collect(call(&node, address, message()).await.unwrap()).await;
    assert!(matches!(events.last(), Some(Kind::InitSuccess(_))));
    running.abort();
    assert!(logs.text().contains("wrong init secret"));
    logs.assert_free_of(&[b"secreT", INIT_SECRET]);
}

async fn a_failure_is_told_with_the_journal_and_ends_the_node(technology: &'static dyn Technology) {
    let node = TestNode::failing(technology, NodeRole::ControlPlane, Some("kubeadm"));
    let (address, running) = node.start().await;
    let events = collect(call(&node, address, message()).await.unwrap()).await;
    let [.., Kind::InitFailure(failure), Kind::Log(log)] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert!(
        failure
            .error
            .ends_with("kubeadm failed with exit code 1: kubeadm is broken"),
        "{}",
        failure.error
    );
    assert_eq!(log.log, JOURNAL.as_bytes());
    assert!(matches!(running.await.unwrap(), Err(NodeError::Init(_))));
    assert_eq!(node.node.files.load_state().unwrap().stage, Stage::Joining);
    let restarted = node.resume().await;
    assert!(matches!(restarted, Err(ResumeError::Interrupted)));
}

async fn a_wrong_component_fails_before_kubeadm_runs(technology: &'static dyn Technology) {
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    let mut example = example();
    example.components[0].hash = format!("sha256:{}", "00".repeat(32));
    let events = collect(call(&node, address, example.message()).await.unwrap()).await;
    assert!(matches!(events.as_slice(), [.., Kind::InitFailure(_), Kind::Log(_)]));
    assert!(running.await.unwrap().is_err());
    assert!(!node.file("run/state/bin/kubelet").exists());
    assert!(!node.programs.calls().iter().any(|call| call.starts_with("kubeadm")));
}

async fn the_same_request_finds_what_it_started_and_another_is_refused(technology: &'static dyn Technology) {
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    // The connection is lost at once.
    drop(call(&node, address, message()).await.unwrap());
    let again = || async {
        // By now the node may have measured its membership.
        match boot(&*node.node.attester).unwrap() {
            Boot::New => ExpectedMembership::New,
            Boot::Member => ExpectedMembership::Of(first_of_cluster()),
        }
    };
    while boot(&*node.node.attester).is_ok_and(|boot| matches!(boot, Boot::New)) {
        tokio::task::yield_now().await;
    }
    let other = Example { salt: 1, ..example() };
    let refusal = call_as(&node, again().await, address, other.message())
        .await
        .unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);

    let stream = call_as(&node, again().await, address, message()).await.unwrap();
    let events = collect(stream).await;
    assert_eq!(events.len(), 7, "{events:?}");
    assert!(matches!(events.last(), Some(Kind::InitSuccess(_))));
    running.abort();
    assert_eq!(node.disk.keys().len(), 1);
}

async fn a_node_that_is_joining_refuses_init(technology: &'static dyn Technology) {
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    let _reservation = node.node.lock.reserve(Owner::Join).unwrap();
    let refusal = call(&node, address, message()).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(node.disk.keys().is_empty());
    running.abort();
}

async fn a_node_that_obeys_an_operator_takes_no_other_ones_secret(technology: &'static dyn Technology) {
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    let other = Example { key: b'D', ..example() };
    let refusal = call(&node, address, other.message()).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(
        refusal
            .message()
            .starts_with("kms_uri: this master secret belongs to another operator"),
        "{refusal}"
    );
    assert!(node.disk.keys().is_empty());
    assert!(node.node.attester.membership().unwrap().is_new());
    running.abort();
}

async fn a_bootstrapper_that_starts_again_goes_on_and_obeys_nobody_else(technology: &'static dyn Technology) {
    let node = control_plane(technology);
    assert!(node.node.attester.statements().unwrap().operator.is_nothing());
    for _ in 0..2 {
        node.node.obey_operator().await.unwrap();
        assert!(node.node.attester.statements().unwrap().operator.is(&operator()));
    }
    let other = TestNode::new(technology, NodeRole::Worker);
    let attester = &other.node.attester;
    attester.measure_operator(&OperatorPublicKey::new([1; 32])).unwrap();
    let (_, running) = other.start().await;
    let error = running.await.unwrap().unwrap_err();
    assert!(
        matches!(error, NodeError::Operator(OperatorError::Another { .. })),
        "{error}"
    );
}

async fn a_member_that_has_not_measured_whom_it_obeys_ends(technology: &'static dyn Technology) {
    let node = control_plane(technology);
    node.node.attester.measure_membership(&first_of_cluster()).unwrap();
    let resumed = node.resume().await;
    assert!(matches!(resumed, Err(ResumeError::ObeysNobody)));
    assert!(node.programs.calls().is_empty());
}

async fn an_invalid_request_is_explained_to_who_has_the_secret(technology: &'static dyn Technology) {
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    let invalid = InitMessage {
        kubernetes_version: "latest".into(),
        ..message()
    };
    let refusal = call(&node, address, invalid.clone()).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument);
    assert!(refusal.message().contains("kubernetes_version"));
    let without_secret = InitMessage {
        init_secret: Vec::new(),
        ..invalid
    };
    let refusal = call(&node, address, without_secret).await.unwrap_err();
    assert_eq!(refusal.message(), "init refused");
    running.abort();
}

async fn a_member_that_boots_again_gets_its_address_and_its_kubelet(technology: &'static dyn Technology) {
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    collect(call(&node, address, message()).await.unwrap()).await;
    running.abort();
    let before = node.programs.calls().len();
    let resolver = node.file("run/constellation/resolv.conf");
    fs::remove_file(&resolver).unwrap();
    node.resume().await.unwrap();
    assert_eq!(
        node.programs.calls()[before..],
        ["ip address", "ip link", "systemctl start", "deploy again"]
    );
    assert_eq!(
        fs::read_to_string(&resolver).unwrap(),
        "nameserver 192.0.2.53\nnameserver 192.0.2.54\n"
    );
}

fn deployments(node: &TestNode) -> Vec<String> {
    let calls = node.programs.calls().into_iter();
    calls.filter(|call| call.starts_with("deploy")).collect()
}

async fn the_first_node_deploys_once_kubeadm_is_done(technology: &'static dyn Technology) {
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    collect(call(&node, address, message()).await.unwrap()).await;
    running.abort();
    assert_eq!(deployments(&node), ["deploy start"]);
    let calls = node.programs.calls();
    let place = |call: &str| calls.iter().rposition(|made| made == call).unwrap();
    assert!(place("kubeadm init") < place("deploy start"), "{calls:?}");
}

async fn a_node_whose_services_cannot_be_applied_ends(technology: &'static dyn Technology) {
    let node = TestNode::failing(technology, NodeRole::ControlPlane, Some("deploy"));
    let (address, running) = node.start().await;
    let events = collect(call(&node, address, message()).await.unwrap()).await;
    let [.., Kind::InitFailure(failure), Kind::Log(_)] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert!(
        failure.error.starts_with("cannot apply the services: "),
        "{}",
        failure.error
    );
    assert!(matches!(running.await.unwrap(), Err(NodeError::Init(_))));
    assert_eq!(node.node.files.load_state().unwrap().stage, Stage::Joining);
    assert!(node.node.files.load_state().unwrap().deploys().is_none());
}

async fn a_worker_that_boots_again_deploys_nothing(technology: &'static dyn Technology) {
    let node = TestNode::new(technology, NodeRole::Worker);
    let member = Membership::new(cluster(), NodeRole::Worker);
    node.node.obey_operator().await.unwrap();
    let reservation = node.node.lock.reserve(Owner::Join).unwrap();
    let locked = reservation.measure(member).await.unwrap();
    let salt = InitRequest::parse(message()).unwrap().measurement_salt;
    let hints = &node.node.hints;
    let (address, network) = (hints.this_node.address.ip(), hints.network.clone());
    let state = NodeState::new(NodeRole::Worker, salt, address, network).as_member();
    node.node.files.write_state(&locked, &state).unwrap();
    let request = InitRequest::parse(message()).unwrap();
    node.node.files.write_policy(&locked, &request.policy).unwrap();
    node.node.files.write_components(&locked, &request.components).unwrap();
    node.resume().await.unwrap();
    assert!(deployments(&node).is_empty());
}

async fn what_is_deployed_is_applied_again_and_again(technology: &'static dyn Technology) {
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    collect(call(&node, address, message()).await.unwrap()).await;
    running.abort();
    tokio::time::pause();
    let kept = keep_deployed(&node.node.files, node.node.attester.identity(), &*node.programs);
    // A bit more than three times ten minutes.
    assert!(tokio::time::timeout(Duration::from_secs(31 * 60), kept).await.is_err());
    assert_eq!(deployments(&node)[1..], ["deploy again"; 3]);
}

/// As [`control_plane`] after its first boot.
async fn first_of_its_cluster(technology: &'static dyn Technology) -> TestNode {
    let node = control_plane(technology);
    let (address, running) = node.start().await;
    collect(call(&node, address, message()).await.unwrap()).await;
    running.abort();
    node
}

fn kubelet_was_started(node: &TestNode) -> bool {
    node.programs.calls().contains(&"systemctl start".to_owned())
}

/// Root on the node did it in an earlier boot.
async fn a_program_that_was_changed_is_replaced_before_the_kubelet_starts(technology: &'static dyn Technology) {
    let node = first_of_its_cluster(technology).await;
    let kubelet = node.file("run/state/bin/kubelet");
    fs::remove_file(&kubelet).unwrap();
    fs::write(&kubelet, "evil").unwrap();
    node.resume().await.unwrap();
    assert_eq!(fs::read(&kubelet).unwrap(), b"kubelet");
    assert!(kubelet_was_started(&node));
}

async fn a_node_starts_nothing_that_its_operator_did_not_sign(technology: &'static dyn Technology) {
    let node = first_of_its_cluster(technology).await;
    let list = node.file("run/state/constellation/components.json");
    let text = fs::read_to_string(&list).unwrap();
    let hash = Digest::of(b"kubelet").to_string();
    fs::write(&list, text.replace(&hash, &"00".repeat(32))).unwrap();
    let error = node.resume().await.unwrap_err();
    assert!(matches!(error, ResumeError::Unlisted(_)), "{error}");
    assert!(!kubelet_was_started(&node));
}

async fn a_policy_of_another_operator_or_cluster_pins_nothing(technology: &'static dyn Technology) {
    let node = first_of_its_cluster(technology).await;
    let stored = node.file("run/state/constellation/policy/cluster-policy");
    let other = OperatorKey::from_seed(&[1; 32]);
    fs::write(&stored, policy(&other, cluster(), &components())).unwrap();
    let error = node.resume().await.unwrap_err();
    assert!(matches!(error, ResumeError::Policy(_)), "{error}");
    fs::write(&stored, policy(&operator_key(), ClusterId::new([7; 32]), &components())).unwrap();
    let error = node.resume().await.unwrap_err();
    assert!(matches!(error, ResumeError::AnotherMember { .. }), "{error}");
    assert!(!kubelet_was_started(&node));
}
