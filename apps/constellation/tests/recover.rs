//! `recover` against a control plane of each technology whose state disk is closed: what it is sent, and what must be true before.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attestation::{MeasuringAttester, Membership, Purpose, ReportBinding};
use attested_tls::{Endpoint, Peer, PeerPolicy, incoming};
use cluster_config::{ClusterState, Workspace};
use cluster_policy::{BelievedPolicy, ClusterPolicy};
use cluster_types::{ClusterId, NodeRole, OperatorPublicKey};
use digest::Digest;
use grpc_api::recover::api_server::{Api, ApiServer};
use grpc_api::recover::{DescribeRequest, DescribeResponse, RecoverRequest, RecoverResponse};
use key_derivation::DiskOwner;
use operator_key::{OperatorKey, SignatureDomain};
use support::api_server::{api_server, api_server_with, made_of};
use support::{Host, stderr};
use test_machines::{Machine, SOFTWARE_TPM, Technology, for_each_technology};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::{Request, Response, Status};

for_each_technology!(sync:
    a_control_plane_gets_what_opens_its_disk_and_no_more,
    another_machine_in_its_place_gets_nothing,
    a_node_of_another_operator_gets_nothing,
    a_node_with_a_new_disk_gets_nothing,
    why_a_node_cannot_come_back_is_told_with_its_console,
    a_control_plane_that_has_just_come_back_is_waited_for,
    a_worker_in_its_place_gets_nothing,
    a_policy_of_another_cluster_of_the_operator_opens_nothing,
    it_is_done_when_the_api_server_answers,
);

const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";
const REACHING: &str = "reaching the control plane\n";
const RECOVERING: &str = "recovering control-plane-0\n";
const WORTH: &str = "Note: These nodes attest with hardware emulated by the host";

type Sent = Arc<Mutex<Vec<(RecoverRequest, ReportBinding)>>>;

/// A node that waits for its key.
#[derive(Clone)]
struct Waiting {
    sent: Sent,
    refusal: Option<&'static str>,
    attester: Arc<dyn MeasuringAttester>,
    was: Membership,
}

#[tonic::async_trait]
impl Api for Waiting {
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(DescribeResponse { disk_uuid: DISK.into() }))
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<RecoverResponse>, Status> {
        let binding = request.extensions().get::<Peer>().unwrap().own_binding.unwrap();
        self.sent.lock().unwrap().push((request.into_inner(), binding));
        match self.refusal {
            None => {
                self.attester.measure_membership(&self.was).unwrap();
                Ok(Response::new(RecoverResponse {}))
            }
            Some(reason) => Err(Status::failed_precondition(reason)),
        }
    }
}

struct Restarted {
    host: Host,
    runtime: Runtime,
    machine: Box<dyn Machine>,
    sent: Sent,
}

impl Restarted {
    /// A cluster whose API server is down. Its control plane is this machine.
    fn new(technology: &'static dyn Technology) -> Self {
        let closed = StdTcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self::of(technology, closed, Sent::default())
    }

    fn of(technology: &'static dyn Technology, api_server: u16, sent: Sent) -> Self {
        let restarted = Self {
            host: made_of(technology, api_server),
            runtime: Runtime::new().unwrap(),
            machine: technology.power_on().unwrap(),
            sent,
        };
        let identity = Digest::new(*restarted.attester().identity().as_bytes());
        restarted.knows(identity);
        restarted
    }

    fn attester(&self) -> Arc<dyn MeasuringAttester> {
        self.machine.attester().unwrap()
    }

    fn workspace(&self) -> Workspace {
        Workspace::open(&self.host.workspace()).unwrap()
    }

    fn state(&self) -> ClusterState {
        self.workspace().state().unwrap().unwrap()
    }

    fn operator(&self) -> OperatorPublicKey {
        OperatorKey::of(&self.workspace().master_secret().unwrap()).public()
    }

    /// Which machine the control plane had.
    fn knows(&self, identity: Digest) {
        let mut state = self.state();
        state.identities.insert("control-plane-0".parse().unwrap(), identity);
        self.workspace().save_state(&state).unwrap();
    }

    fn waits(&self) {
        self.serves(&[Purpose::Recover], None, &self.operator());
    }

    fn serves(&self, purposes: &'static [Purpose], refusal: Option<&'static str>, operator: &OperatorPublicKey) {
        let attester = self.attester();
        if attester.statements().unwrap().operator.is_nothing() {
            attester.measure_operator(operator).unwrap();
        }
        let peer = PeerPolicy::Unattested { reason: "a test" };
        let endpoint = Arc::new(Endpoint::new(Some(attester.clone()), peer));
        let waiting = Waiting {
            sent: self.sent.clone(),
            refusal,
            attester,
            was: self.was(NodeRole::ControlPlane),
        };
        let nodes = self.state().infrastructure.unwrap().nodes;
        let node = nodes.iter().find(|node| node.name.as_str() == "control-plane-0");
        let address = SocketAddr::from(([127, 0, 0, 1], node.unwrap().ports.bootstrapper));
        self.runtime.block_on(async {
            let sessions = incoming(TcpListener::bind(address).await.unwrap(), endpoint, purposes);
            let server = tonic::transport::Server::builder().add_service(ApiServer::new(waiting));
            tokio::spawn(server.serve_with_incoming(sessions));
        });
    }

    /// It has measured this before it answers.
    fn is(&self, role: NodeRole) {
        let attester = self.attester();
        attester.measure_operator(&self.operator()).unwrap();
        attester.measure_membership(&self.was(role)).unwrap();
    }

    fn was(&self, role: NodeRole) -> Membership {
        Membership::new(self.state().cluster_id.unwrap(), role)
    }

    /// `recover`, which fails.
    fn fails(&self) -> String {
        let output = self.host.run(&["recover"]);
        assert_eq!(output.status.code(), Some(1));
        stderr(&output)
    }
}

fn a_control_plane_gets_what_opens_its_disk_and_no_more(technology: &'static dyn Technology) {
    for command in [&["recover"][..], &["apply", "--yes"]] {
        let restarted = Restarted::new(technology);
        restarted.waits();
        let running = restarted.host.until(command, RECOVERING);
        let (_, worth) = running.said.split_once(REACHING).unwrap();
        assert!(worth.contains(WORTH), "{}", running.said);
        let deadline = Instant::now() + Duration::from_secs(60);
        while restarted.sent.lock().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "nothing was sent: {}", running.said);
            std::thread::yield_now();
        }
        running.kill();

        let sent = restarted.sent.lock().unwrap();
        let (request, binding) = &sent[0];
        let RecoverRequest {
            operator_signature,
            state_disk_key,
            measurement_secret,
            cluster_policy,
            is_control_plane,
        } = request;
        let operator = restarted.operator();
        SignatureDomain::Recovery
            .verify(&operator, binding.as_bytes(), operator_signature)
            .unwrap();
        let kek = restarted.workspace().master_secret().unwrap().kek();
        let identity = restarted.attester().identity();
        let owner = DiskOwner {
            cluster: restarted.state().cluster_id.unwrap(),
            machine: *identity.as_bytes(),
            role: NodeRole::ControlPlane,
        };
        let key = kek.state_disk_key(DISK.parse().unwrap(), &owner);
        assert_eq!(state_disk_key, key.expose());
        assert_eq!(measurement_secret, kek.measurement_secret().expose());
        assert_eq!(cluster_policy, restarted.state().policy.unwrap().as_bytes());
        assert!(is_control_plane);
    }
}

fn another_machine_in_its_place_gets_nothing(technology: &'static dyn Technology) {
    let restarted = Restarted::new(technology);
    restarted.knows(Digest::of(b"another machine"));
    restarted.waits();
    let said = restarted.fails();
    assert!(said.contains("it gets no key") && said.contains("Next: "), "{said}");
    assert!(restarted.sent.lock().unwrap().is_empty());
}

fn a_node_of_another_operator_gets_nothing(technology: &'static dyn Technology) {
    let restarted = Restarted::new(technology);
    restarted.serves(&[Purpose::Recover], None, &OperatorPublicKey::new([1; 32]));
    let said = restarted.fails();
    assert!(said.contains("control-plane-0 is not the expected node"), "{said}");
    assert!(restarted.sent.lock().unwrap().is_empty());
}

/// It waits to become the first node of a cluster.
fn a_node_with_a_new_disk_gets_nothing(technology: &'static dyn Technology) {
    let restarted = Restarted::new(technology);
    restarted.serves(&[Purpose::Init], None, &restarted.operator());
    let said = restarted.fails();
    assert!(said.contains("has a new state disk"), "{said}");
    assert!(restarted.sent.lock().unwrap().is_empty());
}

fn why_a_node_cannot_come_back_is_told_with_its_console(technology: &'static dyn Technology) {
    let restarted = Restarted::new(technology);
    let reason = "the key does not open\x1b[2J the state disk";
    restarted.serves(&[Purpose::Recover], Some(reason), &restarted.operator());
    let said = restarted.fails();
    for part in [
        "control-plane-0 cannot come back: the key does not open [2J the state disk",
        "  | ",
        "Next: ",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

/// Between the answer to the operator and its end, its bootstrapper still listens.
fn a_control_plane_that_has_just_come_back_is_waited_for(technology: &'static dyn Technology) {
    let restarted = Restarted::new(technology);
    restarted.is(NodeRole::ControlPlane);
    restarted.waits();
    restarted.host.until(&["recover"], "control-plane-0: starting\n").kill();
    assert!(restarted.sent.lock().unwrap().is_empty());
}

fn a_worker_in_its_place_gets_nothing(technology: &'static dyn Technology) {
    let restarted = Restarted::new(technology);
    restarted.is(NodeRole::Worker);
    restarted.waits();
    let said = restarted.fails();
    assert!(said.contains("control-plane-0 is not the expected node"), "{said}");
    assert!(restarted.sent.lock().unwrap().is_empty());
}

/// Whoever edits the state puts in a policy with another image that the operator signed for a former cluster.
fn a_policy_of_another_cluster_of_the_operator_opens_nothing(technology: &'static dyn Technology) {
    let restarted = Restarted::new(technology);
    restarted.waits();
    let mut state = restarted.state();
    let policy = state.policy.unwrap().believe(|_| true).unwrap();
    let former = ClusterPolicy {
        cluster: ClusterId::new([9; 32]),
        ..(*policy).clone()
    };
    let operator = OperatorKey::of(&restarted.workspace().master_secret().unwrap());
    state.policy = Some(BelievedPolicy::sign(&former, &operator).unwrap().into_signed());
    restarted.workspace().save_state(&state).unwrap();
    let said = restarted.fails();
    assert!(said.contains("the cluster policy is for cluster 0909"), "{said}");
    assert!(restarted.sent.lock().unwrap().is_empty());
}

fn it_is_done_when_the_api_server_answers(technology: &'static dyn Technology) {
    let sent = Sent::default();
    let recovered = sent.clone();
    let api_server = api_server_with(move |_| {
        let is_up = !recovered.lock().unwrap().is_empty();
        let status = if is_up { "200 OK" } else { "503 Service Unavailable" };
        (status, "{}".to_owned())
    });
    let restarted = Restarted::of(technology, api_server, sent);
    restarted.waits();
    let output = restarted.host.run(&["recover"]);
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(restarted.sent.lock().unwrap().len(), 1, "{said}");
}

/// Root on it has made it end at each boot.
#[test]
fn a_worker_that_stops_keeps_nobody_from_recovering_the_control_plane() {
    for command in [&["recover"][..], &["apply", "--yes"]] {
        let restarted = Restarted::new(SOFTWARE_TPM);
        restarted.host.machines().stop("worker-0", "its header is not ours");
        restarted.waits();
        restarted.host.until(command, "recovering control-plane-0: done").kill();
        assert_eq!(restarted.sent.lock().unwrap().len(), 1);
    }
}

/// A worker can leave only when there is a control plane.
#[test]
fn the_control_plane_is_brought_back_before_workers_leave() {
    let restarted = Restarted::new(SOFTWARE_TPM);
    let machines = restarted.host.machines();
    for machine in ["control-plane-0", "worker-0"] {
        machines.stop(machine, "the power failed");
    }
    restarted
        .host
        .change_config("initialCount: 1 # workers", "initialCount: 0 # workers");
    let running = restarted.host.until(&["apply", "--yes"], REACHING);
    assert!(!running.said.contains("removing worker-0"), "{}", running.said);
    running.kill();
    // It is going to leave, and is not started for that.
    assert_eq!(
        [machines.starts("control-plane-0"), machines.starts("worker-0")],
        [2, 1]
    );
}

#[test]
fn no_machine_takes_the_place_of_a_control_plane_whose_machine_is_gone() {
    let restarted = Restarted::new(SOFTWARE_TPM);
    restarted.host.machines().unmake("control-plane-0");
    let output = restarted.host.run(&["apply", "--yes"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("the machine of control-plane-0 is gone"), "{said}");
    assert_eq!(restarted.host.machines().starts("control-plane-0"), 0);
}

#[test]
fn a_cluster_that_answers_needs_no_recovery() {
    let host = made_of(SOFTWARE_TPM, api_server("200 OK", |_| "ok".to_owned()));
    let output = host.run(&["recover"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stderr(&output).contains("recovering"));
}

#[test]
fn without_a_cluster_there_is_nothing_to_recover() {
    let host = Host::new();
    host.configure();
    host.until(&["mini", "up"], "control-plane-0 is booting\n").kill();
    let output = host.run(&["recover"]);
    assert!(stderr(&output).contains("no cluster to recover"), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_machine_that_stopped_is_started_by_apply() {
    let restarted = Restarted::new(SOFTWARE_TPM);
    restarted.host.machines().stop("control-plane-0", "the power failed");
    let said = restarted.fails();
    assert!(said.contains("the power failed"), "{said}");
    assert!(said.ends_with(&format!("Next: {}\n", test_provider::ADVICE)), "{said}");
    let running = restarted.host.until(&["apply", "--yes"], REACHING);
    assert!(running.said.contains("starting the control plane"), "{}", running.said);
    running.kill();
    let machines = restarted.host.machines();
    assert_eq!(
        [machines.starts("control-plane-0"), machines.starts("worker-0")],
        [2, 1]
    );
}
