//! The attestation daemon as a process, with a machine of each technology, and whoever has taken over one of its services.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use attestation::{
    AttestError, Attester, BindingParts, Direction, Evidence, ExpectedMembership, Membership, Nonce, Outcome, Purpose,
    SessionParts, UnixTime,
};
use attestation_daemon_client::AttestationDaemon as Client;
use cluster_types::{ClusterId, NodeRole, SealingPublicKey};
use test_machines::{Machine, Technology, for_each_technology, operator, verifiers};
use test_services::{AttestationDaemon, server_session};

for_each_technology!(async:
    each_service_gets_evidence_for_its_own_purposes_alone,
    a_service_gets_no_evidence_with_which_to_ask_for_secrets,
    evidence_says_what_the_machine_has_measured,
    a_caller_is_told_what_the_machine_has_measured,
);

const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);
const ALL: [Purpose; 5] = [
    Purpose::Init,
    Purpose::Join,
    Purpose::Rejoin,
    Purpose::Recover,
    Purpose::Verify,
];

async fn start(technology: &dyn Technology) -> (AttestationDaemon, Box<dyn Machine>) {
    let machine = technology.boot().unwrap();
    (start_on(technology, &*machine).await, machine)
}

async fn start_on(technology: &dyn Technology, machine: &dyn Machine) -> AttestationDaemon {
    let program = Path::new(env!("CARGO_BIN_EXE_attestation-daemon"));
    AttestationDaemon::start(program.parent().unwrap(), technology, machine)
        .await
        .unwrap()
}

async fn clients(daemon: &AttestationDaemon) -> [Arc<Client>; 2] {
    let join = Client::connect(&daemon.join_socket()).await.unwrap();
    let verification = Client::connect(&daemon.verification_socket()).await.unwrap();
    [Arc::new(join), Arc::new(verification)]
}

async fn attest(client: &Arc<Client>, parts: BindingParts) -> Result<Evidence, AttestError> {
    let client = client.clone();
    tokio::task::spawn_blocking(move || client.attest(&parts))
        .await
        .unwrap()
}

async fn purposes(client: &Arc<Client>) -> Vec<Purpose> {
    let mut given = Vec::new();
    for purpose in ALL {
        if attest(client, BindingParts::Session(server_session(purpose)))
            .await
            .is_ok()
        {
            given.push(purpose);
        }
    }
    given
}

async fn each_service_gets_evidence_for_its_own_purposes_alone(technology: &'static dyn Technology) {
    let (daemon, _machine) = start(technology).await;
    let [join, verification] = clients(&daemon).await;
    assert_eq!(purposes(&join).await, [Purpose::Join, Purpose::Rejoin]);
    assert_eq!(purposes(&verification).await, [Purpose::Verify]);
    let nonce = BindingParts::Nonce(Nonce::generate());
    assert!(attest(&join, nonce).await.is_err());
    assert!(attest(&verification, nonce).await.is_ok());
    assert!(daemon.process().log().contains("no evidence for this purpose"));
    for socket in [daemon.join_socket(), daemon.verification_socket()] {
        let mode = std::fs::metadata(socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

/// The wire has no words for a client's Evidence or a sealing key: the client refuses by itself, and what it gets otherwise is bound to the
/// server's side of the session, without a key.
async fn a_service_gets_no_evidence_with_which_to_ask_for_secrets(technology: &'static dyn Technology) {
    let (daemon, _machine) = start(technology).await;
    let [join, _] = clients(&daemon).await;
    let as_server = server_session(Purpose::Join);
    let given = attest(&join, BindingParts::Session(as_server)).await.unwrap();
    let appraise =
        |parts: BindingParts| verifiers(technology, ExpectedMembership::New).appraise(&given, &parts.binding(), NOW);
    assert!(appraise(BindingParts::Session(as_server)).is_ok());
    let as_client = SessionParts {
        direction: Direction::Client,
        ..as_server
    };
    let with_key = SessionParts {
        sealing_key: Some(SealingPublicKey::new([5; 32])),
        ..as_server
    };
    for parts in [as_client, with_key].map(BindingParts::Session) {
        assert!(attest(&join, parts).await.is_err());
        assert!(technology.is_bound_to_something_else(&appraise(parts).unwrap_err()));
    }
}

async fn evidence_says_what_the_machine_has_measured(technology: &'static dyn Technology) {
    let (daemon, _machine) = start(technology).await;
    let [join, verification] = clients(&daemon).await;
    let nonce = BindingParts::Nonce(Nonce::generate());
    for (client, parts) in [
        (join, BindingParts::Session(server_session(Purpose::Rejoin))),
        (verification, nonce),
    ] {
        let evidence = attest(&client, parts).await.unwrap();
        let appraised = verifiers(technology, ExpectedMembership::New).appraise(&evidence, &parts.binding(), NOW);
        assert_eq!(appraised.unwrap().outcome(), Outcome::Affirming);
    }
}

async fn a_caller_is_told_what_the_machine_has_measured(technology: &'static dyn Technology) {
    let machine = technology.boot().unwrap();
    let member = Membership::new(ClusterId::new([1; 32]), NodeRole::ControlPlane);
    machine.attester().unwrap().measure_membership(&member).unwrap();
    let daemon = start_on(technology, &*machine).await;
    for client in clients(&daemon).await {
        assert_eq!(client.variant(), technology.variant());
        let measured = technology.variants().statements(client.variant(), client.shown());
        let measured = measured.unwrap();
        assert!(measured.operator.is(&operator()) && measured.membership.is(&member));
    }
}
