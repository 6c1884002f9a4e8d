//! The key service as a process, with nodes of each technology, and with callers that bring what no node has said.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use attestation::{BindingParts, Membership, Nonce, Purpose, SessionEvidence, SessionParts};
use cluster_policy::BelievedPolicy;
use cluster_types::{ClusterId, DiskUuid, MeasurementSalt, NodeRole, OperatorPublicKey, SealingPublicKey};
use digest::Digest;
use key_derivation::DiskOwner;
use key_service_client::{KeyServiceClient, KeyServiceError, PresentedPolicy, WantedRole};
use node_secrets::{NodeSecrets, SHARED_FILES};
use operator_key::OperatorKey;
use role_grant::RoleGrant;
use serde_json::Value;
use test_machines::{SOFTWARE_TPM, Technology, for_each_technology, master_secret};
use test_services::{JoinConfigExample, JoiningNode, KeyService, SALT, presented};
use tokio::net::UnixListener;
use tokio::time::sleep;

const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";

for_each_technology!(async:
    a_worker_gets_its_secrets_and_they_are_on_record,
    a_control_plane_needs_the_operators_grant,
    a_disk_has_another_key_for_each_machine_and_role,
    a_nonce_is_good_for_one_release,
    evidence_that_is_not_for_this_session_releases_nothing,
    nodes_that_are_not_what_they_should_be_get_nothing,
    nothing_is_sealed_to_a_key_that_is_none,
    another_policy_than_the_operators_releases_nothing,
);

fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_key-service")).parent().unwrap()
}

async fn start(technology: &dyn Technology) -> KeyService {
    KeyService::start(programs(), technology, master_secret())
        .await
        .unwrap()
}

fn present(node: &JoiningNode, nonce: Nonce, purpose: Purpose) -> SessionEvidence {
    presented(node.attester(), nonce, purpose, node.sealing_key()).unwrap()
}

async fn in_session(service: &KeyService, node: &JoiningNode, purpose: Purpose) -> SessionEvidence {
    present(node, service.client().nonce(purpose).await.unwrap(), purpose)
}

const fn by(policy: &BelievedPolicy) -> PresentedPolicy<'_> {
    PresentedPolicy {
        policy,
        measurement_salt: &SALT,
    }
}

async fn admit(
    service: &KeyService,
    presented: &SessionEvidence,
    admission: WantedRole<'_>,
) -> Result<Vec<u8>, KeyServiceError> {
    let policy = service.config().policy();
    service.client().admit(presented, by(&policy), admission).await
}

/// As the node opens them.
fn open(service: &KeyService, node: &JoiningNode, presented: &SessionEvidence, sealed: &[u8]) -> NodeSecrets {
    let key_service = &service.config().key_service_key;
    node_secrets::open(sealed, node.sealing_key(), &presented.binding(), key_service).unwrap()
}

/// The caller, which is not at fault for the node's request, learns the reason.
fn check_refused<T>(result: Result<T, KeyServiceError>, reason: &str) {
    match result {
        Err(KeyServiceError::Refused(status)) => assert!(status.message().contains(reason), "{}", status.message()),
        Err(other) => panic!("{reason}: {other:?}"),
        Ok(_) => panic!("not refused: {reason}"),
    }
}

/// The node learns the reason.
fn check_nodes_fault<T>(result: Result<T, KeyServiceError>, reason: &str) {
    match result {
        Err(KeyServiceError::GrantRefused(message)) => assert!(message.starts_with(reason), "{message}"),
        Err(other) => panic!("{reason}: {other:?}"),
        Ok(_) => panic!("not refused: {reason}"),
    }
}

fn records(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn a_worker_gets_its_secrets_and_they_are_on_record(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let node = JoiningNode::boot(technology).unwrap();
    let session = in_session(&service, &node, Purpose::Join).await;
    let sealed = admit(&service, &session, WantedRole::Worker).await;
    let sealed = sealed.unwrap_or_else(|error| panic!("{error:?}\n{}", service.log()));

    let secrets = open(&service, &node, &session, &sealed);
    let (kek, identity) = (service.master_secret().kek(), node.attester().identity());
    let cluster = service.config().cluster;
    let owner = DiskOwner {
        cluster,
        machine: *identity.as_bytes(),
        role: NodeRole::Worker,
    };
    let key = kek.state_disk_key(secrets.disk, &owner);
    assert_eq!(secrets.state_disk_key.expose(), key.expose());
    assert_eq!(secrets.measurement_secret.expose(), kek.measurement_secret().expose());
    assert_eq!(secrets.policy, Digest::of(service.config().policy().as_bytes()));
    assert_eq!(&secrets.cluster_ca, service.cluster_ca());
    assert!(secrets.control_plane.is_none());

    let [record] = &records(&service.audit())[..] else {
        panic!("{}", service.audit())
    };
    assert_eq!(record["previous"], "00".repeat(32));
    assert_eq!(record["decision"], "granted");
    assert_eq!(record["purpose"], "join");
    assert_eq!(record["machine"], identity.to_string());
    assert_eq!(record["policy_serial"], 1);
    let disk_key = format!("stateDisk-{}-{cluster}-{identity}-worker", secrets.disk);
    assert_eq!(record["keys"], serde_json::json!([disk_key, "measurementSecret"]));
    for secret in [key.expose(), kek.measurement_secret().expose()] {
        let text = hex::encode(secret);
        assert!(!service.log().contains(&text) && !service.audit().contains(&text));
        assert!(!sealed.windows(8).any(|part| part == &secret[..8]));
    }
}

async fn a_control_plane_needs_the_operators_grant(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let node = JoiningNode::boot(technology).unwrap();
    let operator = OperatorKey::of(service.master_secret());
    let good = RoleGrant {
        cluster: service.config().cluster,
        machine: node.attester().identity(),
        role: NodeRole::ControlPlane,
        not_after: u64::MAX,
        serial: 1,
    };
    let other_machine = JoiningNode::boot(technology).unwrap().attester().identity();
    let refused = [
        (Vec::new(), "role_grant is refused: a control-plane needs a role grant"),
        (vec![1], "role_grant is refused: the role grant is malformed"),
        (good.sign(&OperatorKey::from_seed(&[9; 32])), "role_grant is refused: "),
        (
            RoleGrant {
                machine: other_machine,
                ..good
            }
            .sign(&operator),
            "role_grant is refused: the role grant is for machine",
        ),
        (
            RoleGrant {
                cluster: ClusterId::new([9; 32]),
                ..good
            }
            .sign(&operator),
            "role_grant is refused: the role grant is for cluster",
        ),
        (
            RoleGrant { not_after: 1, ..good }.sign(&operator),
            "role_grant is refused: the role grant expired at 1",
        ),
    ];
    let expected = refused.len();
    for (grant, reason) in refused {
        let session = in_session(&service, &node, Purpose::Join).await;
        let refused = admit(&service, &session, WantedRole::ControlPlane(&grant)).await;
        check_nodes_fault(refused, reason);
    }
    let session = in_session(&service, &node, Purpose::Join).await;
    let grant = good.sign(&operator);
    let sealed = admit(&service, &session, WantedRole::ControlPlane(&grant))
        .await
        .unwrap();
    let secrets = open(&service, &node, &session, &sealed);
    let of_control_plane = secrets.control_plane.unwrap();
    let master_secret = service.master_secret();
    assert_eq!(of_control_plane.master_secret.expose_key(), master_secret.expose_key());
    let files = of_control_plane.files.iter().map(|file| (file.name, &**file.content));
    let (names, contents): (Vec<_>, Vec<_>) = files.unzip();
    assert_eq!(names, SHARED_FILES);
    assert!(contents[0].starts_with(b"-----BEGIN CERTIFICATE-----"));
    assert!(
        contents[1..]
            .iter()
            .zip(&names[1..])
            .all(|(content, name)| *content == name.as_bytes())
    );

    // The policy of a later serial can make it void.
    let later = JoinConfigExample {
        serial: 2,
        min_grant_serial: 2,
        ..service.config().clone()
    };
    let session = in_session(&service, &node, Purpose::Join).await;
    let (client, policy) = (service.client(), later.policy());
    let refused = client
        .admit(&session, by(&policy), WantedRole::ControlPlane(&grant))
        .await;
    check_nodes_fault(refused, "role_grant is refused: the role grant has serial 1");

    let machine = good.machine.to_string();
    let [granted] = &records(&service.audit())[..] else {
        panic!("{}", service.audit())
    };
    assert_eq!(
        (&granted["machine"], &granted["policy_serial"]),
        (&machine.clone().into(), &Value::from(1))
    );
    assert_eq!(
        (&granted["keys"][2], &granted["keys"][3]),
        (&"masterSecret".into(), &"sharedFiles".into())
    );
    let texts = service.log() + &service.audit() + &service.refused();
    let master_secret = service.master_secret().expose_key();
    assert!(!texts.contains(&hex::encode(master_secret)) && !texts.contains(&format!("{master_secret:?}")));
    let refused = records(&service.refused());
    assert_eq!(refused.len(), expected + 1);
    for record in &refused {
        assert_eq!(
            (&record["decision"], &record["machine"]),
            (&"denied".into(), &machine.clone().into())
        );
        assert!(record["reason"].as_str().unwrap().starts_with("role_grant is refused"));
        assert_eq!(record["keys"], Value::Null);
    }
    assert_eq!(refused[expected]["policy_serial"], 2);
}

/// Root on a worker asks for the disk of the first node.
async fn a_disk_has_another_key_for_each_machine_and_role(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let disk: DiskUuid = DISK.parse().unwrap();
    let policy = service.config().policy();
    let mut keys = Vec::new();
    for node in [
        JoiningNode::boot(technology).unwrap(),
        JoiningNode::boot(technology).unwrap(),
    ] {
        for role in [NodeRole::Worker, NodeRole::Worker, NodeRole::ControlPlane] {
            let session = in_session(&service, &node, Purpose::Rejoin).await;
            let client = service.client();
            let sealed = client.readmit(&session, by(&policy), disk, role).await.unwrap();
            let secrets = open(&service, &node, &session, &sealed);
            assert_eq!(secrets.disk, disk);
            assert!(secrets.control_plane.is_none());
            keys.push(*secrets.state_disk_key.expose());
        }
    }
    assert_eq!((keys[0], keys[3]), (keys[1], keys[4]));
    let others: HashSet<_> = keys.iter().collect();
    assert_eq!(others.len(), 4);
}

async fn a_nonce_is_good_for_one_release(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let node = JoiningNode::boot(technology).unwrap();
    let session = in_session(&service, &node, Purpose::Join).await;
    admit(&service, &session, WantedRole::Worker).await.unwrap();
    let again = admit(&service, &session, WantedRole::Worker).await;
    assert!(matches!(again, Err(KeyServiceError::SecondDecision)), "{again:?}");
    // So does a refusal: otherwise one presentation could fill the log.
    let session = in_session(&service, &node, Purpose::Join).await;
    let refused = admit(&service, &session, WantedRole::ControlPlane(&[])).await;
    check_nodes_fault(refused, "role_grant is refused: a control-plane needs a role grant");
    for _ in 0..2 {
        let again = admit(&service, &session, WantedRole::Worker).await;
        assert!(matches!(again, Err(KeyServiceError::SecondDecision)), "{again:?}");
    }
    assert_eq!(records(&service.refused()).len(), 1);

    let invented = present(&node, Nonce::generate(), Purpose::Join);
    check_refused(
        admit(&service, &invented, WantedRole::Worker).await,
        "the nonce is not one that was drawn here",
    );
    let for_rejoin = service.client().nonce(Purpose::Rejoin).await.unwrap();
    let crossed = present(&node, for_rejoin, Purpose::Join);
    check_refused(
        admit(&service, &crossed, WantedRole::Worker).await,
        "the nonce is not one that was drawn here",
    );
    check_refused(
        service.client().nonce(Purpose::Verify).await,
        "purpose: verify: no keys are released for it",
    );
}

/// Whoever has taken over the join service: it saw what an honest node presented.
async fn evidence_that_is_not_for_this_session_releases_nothing(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let node = JoiningNode::boot(technology).unwrap();
    let session = in_session(&service, &node, Purpose::Join).await;
    type Change = fn(&mut SessionParts);
    let changes: [Change; 4] = [
        |parts| parts.sealing_key = Some(SealingPublicKey::new([9; 32])),
        |parts| parts.exporter = [9; 32],
        |parts| parts.attester_leaf = Digest::new([9; 32]),
        |parts| parts.verifier_leaf = Digest::new([9; 32]),
    ];
    let not_bound = format!("{} evidence is not authentic", technology.variant());
    for change in changes {
        let mut forged = session.clone();
        change(&mut forged.parts);
        check_refused(admit(&service, &forged, WantedRole::Worker).await, &not_bound);
    }
    // A fresh nonce for old Evidence.
    let mut replayed = session.clone();
    replayed.parts.nonce = service.client().nonce(Purpose::Join).await.unwrap();
    check_refused(admit(&service, &replayed, WantedRole::Worker).await, &not_bound);
    // What was presented to join, used to read a disk.
    let (client, policy) = (service.client(), service.config().policy());
    let refused = client
        .readmit(&session, by(&policy), DISK.parse().unwrap(), NodeRole::Worker)
        .await;
    check_refused(refused, "session.purpose: join, expected rejoin");
    let mut without_key = session.clone();
    without_key.parts.sealing_key = None;
    let refused = admit(&service, &without_key, WantedRole::Worker).await;
    assert!(matches!(refused, Err(KeyServiceError::NoSealingKey)));

    // Whoever reaches the socket does not fill the disk.
    assert_eq!(service.audit() + &service.refused(), "");
    admit(&service, &session, WantedRole::Worker).await.unwrap();
}

async fn nodes_that_are_not_what_they_should_be_get_nothing(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let (changed, member) = (
        JoiningNode::boot(technology).unwrap(),
        JoiningNode::boot(technology).unwrap(),
    );
    changed.machine().change_image().unwrap();
    let membership = Membership::new(service.config().cluster, NodeRole::ControlPlane);
    member.attester().measure_membership(&membership).unwrap();
    let another_operators = JoiningNode::boot_for(technology, &OperatorPublicKey::new([1; 32])).unwrap();
    for node in [changed, member, another_operators] {
        let session = in_session(&service, &node, Purpose::Join).await;
        check_refused(admit(&service, &session, WantedRole::Worker).await, "contraindicated");
        let session = in_session(&service, &node, Purpose::Rejoin).await;
        let (client, policy) = (service.client(), service.config().policy());
        let refused = client
            .readmit(&session, by(&policy), DISK.parse().unwrap(), NodeRole::Worker)
            .await;
        check_refused(refused, "contraindicated");
    }
    assert_eq!(service.audit() + &service.refused(), "");
}

/// X25519 with a point of small order gives the same secret to everyone.
async fn nothing_is_sealed_to_a_key_that_is_none(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let node = JoiningNode::boot(technology).unwrap();
    let mut session = in_session(&service, &node, Purpose::Join).await;
    session.parts.sealing_key = Some(SealingPublicKey::new([0; 32]));
    session.evidence = node.attester().attest(&BindingParts::Session(session.parts)).unwrap();
    let refused = admit(&service, &session, WantedRole::Worker).await;
    check_refused(refused, "the node's sealing key is not usable");
}

/// Whoever runs etcd, or has taken over the join service.
async fn another_policy_than_the_operators_releases_nothing(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let node = JoiningNode::boot(technology).unwrap();
    node.machine().change_image().unwrap();
    let session = in_session(&service, &node, Purpose::Join).await;
    let admit = async |policy: &BelievedPolicy, salt: MeasurementSalt| {
        let in_force = PresentedPolicy {
            policy,
            measurement_salt: &salt,
        };
        service.client().admit(&session, in_force, WantedRole::Worker).await
    };
    let own = service.config();
    let other = JoinConfigExample {
        operator_seed: [9; 32],
        serial: 9,
        ..own.clone()
    };
    check_refused(admit(&other.policy(), SALT).await, "is signed by operator");
    let elsewhere = JoinConfigExample {
        cluster: ClusterId::new([9; 32]),
        serial: 9,
        ..own.clone()
    };
    check_refused(admit(&elsewhere.policy(), SALT).await, "is for cluster");
    let other_salt = MeasurementSalt::new([9; 32]);
    check_refused(admit(&own.policy(), other_salt).await, "is for cluster");
    let later = JoinConfigExample {
        serial: 2,
        ..own.clone()
    };
    check_refused(admit(&later.policy(), SALT).await, "contraindicated");
    check_refused(
        admit(&own.policy(), SALT).await,
        "serial 1, but serial 2 has been in force",
    );
}

#[tokio::test]
async fn nothing_leaves_when_it_cannot_be_recorded() {
    let full = Path::new("/dev/full");
    let service = KeyService::start_with_audit_log(programs(), SOFTWARE_TPM, master_secret(), full).await;
    let service = service.unwrap();
    let node = JoiningNode::boot(SOFTWARE_TPM).unwrap();
    let session = in_session(&service, &node, Purpose::Join).await;
    let refused = admit(&service, &session, WantedRole::Worker).await;
    check_refused(refused, "the decision cannot be recorded, so nothing is released");
    assert!(
        service
            .log()
            .contains("the decision cannot be recorded, so nothing is released: ")
    );
}

#[tokio::test]
async fn one_that_comes_up_late_is_waited_for() {
    let service = start(SOFTWARE_TPM).await;
    let folder = tempfile::tempdir().unwrap();
    let late = folder.path().join("late");
    let (listener, socket) = (late.clone(), service.socket());
    tokio::spawn(async move {
        sleep(Duration::from_millis(1500)).await;
        let (mut caller, _) = UnixListener::bind(listener).unwrap().accept().await.unwrap();
        let mut service = tokio::net::UnixStream::connect(socket).await.unwrap();
        tokio::io::copy_bidirectional(&mut caller, &mut service).await
    });
    KeyServiceClient::new(&late).nonce(Purpose::Join).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_cleanly_and_the_next_one_takes_its_socket() {
    let mut service = start(SOFTWARE_TPM).await;
    let status = tokio::task::block_in_place(|| service.terminate().unwrap());
    assert!(status.success(), "{status}: {}", service.log());
    assert!(service.log().contains("draining after SIGTERM"));
    let mode = std::fs::metadata(service.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    service.restart(programs(), SOFTWARE_TPM).await.unwrap();
    service.client().nonce(Purpose::Join).await.unwrap();
}
