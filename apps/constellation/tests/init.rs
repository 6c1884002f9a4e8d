//! `mini up` against a node of each technology: what it is sent, and what of it is believed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attestation::{Membership, Purpose};
use attested_tls::{Endpoint, PeerPolicy, incoming};
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, Engine};
use cluster_config::{InitProgress, Workspace};
use cluster_policy::{BelievedPolicy, ClusterPolicy};
use cluster_types::{ClusterId, NodeRole, OperatorPublicKey};
use digest::Digest;
use grpc_api::init::api_server::{Api, ApiServer};
use grpc_api::init::init_response::Kind;
use grpc_api::init::{
    InitFailureResponse, InitRequest, InitResponse, InitSuccessResponse, LogResponseType, ProgressResponse,
};
use infrastructure::NodePorts;
use key_derivation::{MasterSecret, cluster_id};
use kubernetes_components::ComponentList;
use operator_key::OperatorKey;
use support::api_server::{api_server, lead_to};
use support::{Host, stderr, stdout};
use test_machines::{Machine, SOFTWARE_TPM, Technology, for_each_technology};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tonic::{Request, Response, Status};

for_each_technology!(sync:
    a_good_node_becomes_a_cluster,
    a_run_that_is_killed_while_a_worker_is_made_goes_on,
    a_node_that_fails_says_why_and_the_next_run_has_fresh_machines,
    a_run_that_is_killed_while_the_node_works_starts_with_fresh_machines,
    what_the_evidence_is_worth_is_said_before_the_secret_is_sent,
    another_image_is_given_nothing,
    another_operators_node_is_given_nothing,
    another_cluster_id_is_refused,
    verify_tells_a_node_that_is_no_member,
    verify_affirms_a_member,
    verify_tells_a_worker_that_poses_as_a_control_plane,
    verify_tells_a_node_of_another_operator,
    verify_does_not_let_one_node_answer_for_another,
);

/// The first words of what every command says that sends a secret or a verdict.
const WORTH: &str = "Note: These nodes attest with hardware emulated by the host";

const BOOTS: &str = "control-plane-0 is booting\n";

const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters:
- {name: kubernetes, cluster: {server: 'https://10.42.1.100:6443'}}
contexts:
- {name: admin, context: {cluster: kubernetes, user: admin}}
current-context: admin
users:
- {name: admin, user: {token: t}}
";

/// How the node answers.
#[derive(Clone)]
enum Answer {
    /// With a cluster of this id.
    Success(ClusterId),
    Failure,
    Never,
}

#[derive(Clone)]
struct Bootstrapper {
    answer: Answer,
    asked: Arc<Mutex<Vec<InitRequest>>>,
}

#[tonic::async_trait]
impl Api for Bootstrapper {
    type InitStream = tokio_stream::Iter<std::vec::IntoIter<Result<InitResponse, Status>>>;

    async fn init(&self, request: Request<InitRequest>) -> Result<Response<Self::InitStream>, Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        let step = "fetching components\x1b[2J".to_owned();
        let mut kinds = vec![Kind::Progress(ProgressResponse { step })];
        match self.answer {
            Answer::Success(id) => kinds.push(Kind::InitSuccess(InitSuccessResponse {
                kubeconfig: KUBECONFIG.into(),
                cluster_id: id.as_bytes().to_vec(),
            })),
            Answer::Failure => {
                let error = "kubeadm init failed: no space left".to_owned();
                kinds.push(Kind::InitFailure(InitFailureResponse { error }));
                kinds.push(Kind::Log(LogResponseType {
                    log: b"line 1\n".to_vec(),
                }));
                kinds.push(Kind::Log(LogResponseType {
                    log: b"line 2\n".to_vec(),
                }));
            }
            Answer::Never => std::future::pending().await,
        }
        let messages: Vec<_> = kinds
            .into_iter()
            .map(|kind| Ok(InitResponse { kind: Some(kind) }))
            .collect();
        Ok(Response::new(tokio_stream::iter(messages)))
    }
}

/// A node's programs, as far as the CLI talks to them.
struct ScriptedNode {
    runtime: Runtime,
    machine: Box<dyn Machine>,
    asked: Arc<Mutex<Vec<InitRequest>>>,
}

impl ScriptedNode {
    fn new(technology: &dyn Technology) -> Self {
        Self {
            runtime: Runtime::new().unwrap(),
            machine: technology.power_on().unwrap(),
            asked: Arc::default(),
        }
    }

    /// Listens on a port that belongs to a machine which is only a script. It obeys the workspace's operator, unless it obeys
    /// another one.
    fn serve(&self, host: &Host, port: u16, purpose: &'static [Purpose], answer: Answer, member: Option<Membership>) {
        let attester = self.machine.attester().unwrap();
        if attester.statements().unwrap().operator.is_nothing() {
            let operator = OperatorKey::of(&workspace(host).master_secret().unwrap()).public();
            attester.measure_operator(&operator).unwrap();
        }
        if let Some(membership) = member {
            attester.measure_membership(&membership).unwrap();
        }
        let peer = PeerPolicy::Unattested { reason: "a test" };
        let endpoint = Arc::new(Endpoint::new(Some(attester), peer));
        let bootstrapper = Bootstrapper {
            answer,
            asked: self.asked.clone(),
        };
        self.runtime.block_on(async {
            let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port)))
                .await
                .unwrap();
            let sessions = incoming(listener, endpoint, purpose);
            let server = tonic::transport::Server::builder().add_service(ApiServer::new(bootstrapper));
            tokio::spawn(server.serve_with_incoming(sessions));
        });
    }

    /// Leads one port to another.
    fn forward(&self, from: u16, to: u16) {
        self.runtime.block_on(async {
            let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], from)))
                .await
                .unwrap();
            tokio::spawn(async move {
                while let Ok((mut inward, _)) = listener.accept().await {
                    let mut outward = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut inward, &mut outward).await });
                }
            });
        });
    }

    fn serve_init(&self, host: &Host, answer: Answer) {
        self.serve(host, ports(host).bootstrapper, &[Purpose::Init], answer, None);
    }
}

fn control_plane(cluster: ClusterId) -> Membership {
    Membership::new(cluster, NodeRole::ControlPlane)
}

fn workspace(host: &Host) -> Workspace {
    Workspace::open(&host.workspace()).unwrap()
}

fn ports(host: &Host) -> NodePorts {
    let made = workspace(host).state().unwrap().unwrap().infrastructure.unwrap();
    made.nodes
        .iter()
        .find(|node| node.name.as_str() == "control-plane-0")
        .unwrap()
        .ports
}

fn derived_id(host: &Host) -> ClusterId {
    let workspace = workspace(host);
    let secret = workspace.master_secret().unwrap().kek().measurement_secret();
    cluster_id(&secret, &workspace.state().unwrap().unwrap().measurement_salt)
}

fn configured(technology: &'static dyn Technology) -> Host {
    let host = Host::with(technology);
    host.configure();
    host
}

/// For what only shows with processes.
fn released() -> Host {
    let host = Host::released();
    host.configure();
    host
}

fn a_good_node_becomes_a_cluster(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    let mut running = host.until(&["mini", "up"], BOOTS);
    node.serve_init(&host, Answer::Success(derived_id(&host)));
    running.until("publishing the policy\n");
    assert!(running.said.contains("fetching components [2J"), "{}", running.said);
    running.kill();

    let state = workspace(&host).state().unwrap().unwrap();
    assert_eq!(
        (state.init, state.cluster_id),
        (InitProgress::Done, Some(derived_id(&host)))
    );
    let path = host.workspace().join("constellation-admin.conf");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let server = format!("https://127.0.0.1:{}", ports(&host).kubernetes);
    assert!(fs::read_to_string(&path).unwrap().contains(&server));

    let asked = node.asked.lock().unwrap();
    let [request] = asked.as_slice() else {
        panic!("asked {} times", asked.len())
    };
    assert_eq!(Digest::of(&request.init_secret).to_string(), state.init_secret.hash());
    assert_eq!(request.measurement_salt, state.measurement_salt.as_bytes());
    assert!(request.kms_uri.starts_with("kms://cluster-kms?key="));
    assert_eq!(request.component_mirror, test_provider::MIRROR);
    assert_eq!(request.apiserver_cert_sans, ["127.0.0.1", "192.168.77.10"]);
    // What the node would accept: signed by the operator, for this cluster, with these components.
    let operator = OperatorKey::of(&workspace(&host).master_secret().unwrap()).public();
    let components = ComponentList::new("v1.35.4".parse().unwrap(), Vec::new()).unwrap();
    let policy =
        BelievedPolicy::for_new_member(&request.cluster_policy, &operator, derived_id(&host), &components).unwrap();
    assert_eq!((policy.serial, &policy.images[..]), (1, &[technology.image()][..]));
    assert_eq!(state.policy.unwrap().as_bytes(), request.cluster_policy);
    drop(asked);

    // The next run does not ask again.
    host.until(&["mini", "up"], "reaching the control plane\n").kill();
    assert_eq!(node.asked.lock().unwrap().len(), 1);
}

fn a_run_that_is_killed_while_a_worker_is_made_goes_on(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    host.until(&["mini", "up"], "create worker-0\n").kill();
    let mut running = host.until(&["mini", "up"], BOOTS);
    node.serve_init(&host, Answer::Success(derived_id(&host)));
    running.until("publishing the policy\n");
    running.kill();
    let machines = host.machines();
    assert_eq!(
        [machines.starts("control-plane-0"), machines.starts("worker-0")],
        [1, 1]
    );
    assert_eq!(node.asked.lock().unwrap().len(), 1);
    assert!(host.run(&["mini", "down", "--yes"]).status.success());
    assert_eq!(host.files(), ["constellation-conf.yaml"]);
}

#[test]
fn a_machine_that_stops_is_told_with_its_console_and_made_anew() {
    let host = configured(SOFTWARE_TPM);
    host.machines().let_machines_stop(Some("the state disk burns"));
    let (code, said) = host.until(&["mini", "up"], "creating the machines").end();
    assert_eq!(code, Some(1), "{said}");
    for part in [
        "control-plane-0 stopped: the state disk burns",
        "  | constellation: starting",
        test_provider::ADVICE,
    ] {
        assert!(said.contains(part), "{said}");
    }
    host.machines().let_machines_stop(None);
    let running = host.until(&["mini", "up"], BOOTS);
    assert!(running.said.contains("replace control-plane-0"), "{}", running.said);
    running.kill();
}

fn a_node_that_fails_says_why_and_the_next_run_has_fresh_machines(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    let running = host.until(&["mini", "up"], BOOTS);
    node.serve_init(&host, Answer::Failure);
    let (code, said) = running.end();
    assert_eq!(code, Some(1));
    for part in [
        "kubeadm init failed: no space left",
        "constellation-cluster.log",
        "Next: ",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let log = fs::read_to_string(host.workspace().join("constellation-cluster.log")).unwrap();
    assert_eq!(log, "line 1\nline 2\n");
    let secret = fs::read(host.workspace().join("constellation-mastersecret.json")).unwrap();
    let running = host.until(&["mini", "up"], BOOTS);
    assert!(running.said.contains("fresh machines"), "{}", running.said);
    running.kill();
    assert_eq!(
        fs::read(host.workspace().join("constellation-mastersecret.json")).unwrap(),
        secret
    );
}

#[test]
fn status_tells_a_run_that_goes_on_from_one_that_was_interrupted() {
    let (host, node) = (configured(SOFTWARE_TPM), ScriptedNode::new(SOFTWARE_TPM));
    let status = || stdout(&host.run(&["status"]));
    let is_being_made = "another constellation command is creating";
    let mut running = host.until(&["mini", "up"], BOOTS);
    assert!(status().contains(is_being_made), "{}", status());
    node.serve_init(&host, Answer::Never);
    running.until("creating the cluster\n");
    while node.asked.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    let shown = status();
    assert!(
        shown.contains(is_being_made) && !shown.contains("did not finish"),
        "{shown}"
    );
    running.kill();
    assert!(status().contains("creation did not finish"), "{}", status());
}

#[test]
fn status_and_apply_know_a_worker_that_was_planned_and_not_made() {
    let host = configured(SOFTWARE_TPM);
    host.until(&["mini", "up"], BOOTS).kill();
    host.machines().unmake("worker-0");
    let shown = stdout(&host.run(&["status"]));
    let absent = shown.lines().find(|line| line.starts_with("worker-0")).unwrap();
    assert!(absent.contains(" absent "), "{shown}");
    host.until(&["mini", "up"], BOOTS).kill();
    let starts = ["control-plane-0", "worker-0"].map(|node| host.machines().starts(node));
    assert_eq!(starts, [1, 1]);
}

fn a_run_that_is_killed_while_the_node_works_starts_with_fresh_machines(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    let mut running = host.until(&["mini", "up"], BOOTS);
    node.serve_init(&host, Answer::Never);
    running.until("creating the cluster\n");
    while node.asked.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    running.kill();
    let running = host.until(&["mini", "up"], BOOTS);
    assert!(running.said.contains("fresh machines"), "{}", running.said);
    running.kill();
}

/// When it is said, nothing listens yet to which anything could be sent.
fn what_the_evidence_is_worth_is_said_before_the_secret_is_sent(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    let mut running = host.until(&["mini", "up"], BOOTS);
    assert!(running.said.contains(WORTH), "{}", running.said);
    node.serve_init(&host, Answer::Success(derived_id(&host)));
    running.until("publishing the policy\n");
    assert_eq!(running.said.matches(WORTH).count(), 1, "{}", running.said);
    running.kill();
    assert_eq!(node.asked.lock().unwrap().len(), 1);

    // The next run sends no secret.
    let running = host.until(&["mini", "up"], "reaching the control plane\n");
    assert!(!running.said.contains(WORTH), "{}", running.said);
    running.kill();
}

fn another_image_is_given_nothing(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    node.machine.change_image().unwrap();
    let running = host.until(&["mini", "up"], BOOTS);
    node.serve_init(&host, Answer::Success(derived_id(&host)));
    let (code, said) = running.end();
    assert_eq!(code, Some(1));
    for part in ["is not the expected node", "contraindicated", ", expected ", "Next: "] {
        assert!(said.contains(part), "{said}");
    }
    assert!(node.asked.lock().unwrap().is_empty());
}

fn another_operators_node_is_given_nothing(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    let running = host.until(&["mini", "up"], BOOTS);
    let other = OperatorPublicKey::new([1; 32]);
    node.machine.attester().unwrap().measure_operator(&other).unwrap();
    node.serve_init(&host, Answer::Success(derived_id(&host)));
    let (code, said) = running.end();
    assert_ne!(code, Some(0), "{said}");
    assert!(said.contains("control-plane-0 is not the expected node"), "{said}");
    assert!(node.asked.lock().unwrap().is_empty());
}

/// The platform is told it before there is a machine, which asks for it when it boots.
#[test]
fn machines_are_made_for_the_operator_of_the_master_secret() {
    let host = configured(SOFTWARE_TPM);
    host.until(&["mini", "up"], BOOTS).kill();
    let operator = OperatorKey::of(&workspace(&host).master_secret().unwrap()).public();
    for node in ["control-plane-0", "worker-0"] {
        assert_eq!(host.machines().operator(node), Some(operator));
    }
}

fn another_cluster_id_is_refused(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    let running = host.until(&["mini", "up"], BOOTS);
    node.serve_init(&host, Answer::Success(ClusterId::new([9; 32])));
    let (code, said) = running.end();
    assert_eq!(code, Some(1));
    assert!(
        said.contains(&"09".repeat(32)) && said.contains(&derived_id(&host).to_string()),
        "{said}"
    );
    assert!(said.contains("Next: do not use this cluster"), "{said}");
    assert!(!host.files().contains(&"constellation-admin.conf".to_owned()));
}

/// Of each claim that is judged, whether it is as expected.
fn matches(node: &serde_json::Value) -> impl Iterator<Item = bool> {
    let claims = node["claims"].as_array().unwrap();
    claims.iter().filter_map(|claim| claim["matches"].as_bool())
}

/// The node measured no cluster id, so it is a new node and not a member.
fn verify_tells_a_node_that_is_no_member(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    host.until(&["mini", "up"], BOOTS).kill();
    node.serve(&host, ports(&host).verify, &[Purpose::Verify], Answer::Never, None);
    let id = derived_id(&host).to_string();
    let text = host.run(&["verify", "--cluster-id", &id]);
    assert_eq!(text.status.code(), Some(1));
    let said = stdout(&text);
    assert!(said.starts_with(WORTH), "{said}");
    for part in [
        "control-plane-0 (control-plane, 127.0.0.1:",
        "contraindicated",
        "  expected ",
        "worker-0",
        "0 of 2 nodes",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let json = host.run(&["verify", "--cluster-id", &id, "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&json)).unwrap();
    assert_eq!(report["protects_from_host"], false);
    assert_eq!(report["nodes"][0]["verdict"], "contraindicated");
    assert_eq!(matches(&report["nodes"][0]).filter(|matches| !matches).count(), 1);
    assert_eq!(report["nodes"][1]["verdict"], "unreachable");
}

fn verify_affirms_a_member(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    host.until(&["mini", "up"], BOOTS).kill();
    let id = derived_id(&host).to_string();
    let member = Some(control_plane(derived_id(&host)));
    node.serve(&host, ports(&host).verify, &[Purpose::Verify], Answer::Never, member);
    let output = host.run(&["verify", "--cluster-id", &id, "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["nodes"][0]["verdict"], "affirming");
    assert!(matches(&report["nodes"][0]).count() >= 2 && matches(&report["nodes"][0]).all(|matches| matches));
    // The other node cannot be reached, so the cluster as a whole is not.
    assert_eq!(report["verdict"], "not affirming");
    assert_eq!(output.status.code(), Some(1));
}

/// Nodes do not change their roles, whatever they are called.
fn verify_tells_a_worker_that_poses_as_a_control_plane(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    host.until(&["mini", "up"], BOOTS).kill();
    let worker = Membership::new(derived_id(&host), NodeRole::Worker);
    node.serve(
        &host,
        ports(&host).verify,
        &[Purpose::Verify],
        Answer::Never,
        Some(worker),
    );
    let output = host.run(&["verify", "--cluster-id", &derived_id(&host).to_string(), "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["nodes"][0]["verdict"], "contraindicated");
    assert_eq!(matches(&report["nodes"][0]).filter(|matches| !matches).count(), 1);
}

fn verify_tells_a_node_of_another_operator(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    host.until(&["mini", "up"], BOOTS).kill();
    let other = OperatorPublicKey::new([1; 32]);
    node.machine.attester().unwrap().measure_operator(&other).unwrap();
    let member = Some(control_plane(derived_id(&host)));
    node.serve(&host, ports(&host).verify, &[Purpose::Verify], Answer::Never, member);
    let output = host.run(&["verify", "--cluster-id", &derived_id(&host).to_string(), "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["nodes"][0]["verdict"], "contraindicated");
    assert_eq!(matches(&report["nodes"][0]).filter(|matches| !matches).count(), 1);
}

/// It is a member of our cluster, with the same role: only its identity tells.
/// Whoever can edit the state does not choose the operator of the one who has the master secret.
#[test]
fn verify_believes_the_master_secret_more_than_the_state() {
    let (host, node) = made();
    let mut state = workspace(&host).state().unwrap().unwrap();
    state.made_of.as_mut().unwrap().operator_key = Some(OperatorPublicKey::new([1; 32]));
    workspace(&host).save_state(&state).unwrap();
    let member = Some(control_plane(derived_id(&host)));
    node.serve(&host, ports(&host).verify, &[Purpose::Verify], Answer::Never, member);
    let report = host.run(&["verify", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&report)).unwrap();
    assert_eq!(report["nodes"][0]["verdict"], "affirming", "{report}");
}

/// Nothing was created with them, but they are running: whoever is asked must see it.
#[test]
fn machines_of_a_master_secret_that_is_gone_are_not_replaced_without_asking() {
    let host = configured(SOFTWARE_TPM);
    host.until(&["mini", "up"], BOOTS).kill();
    fs::remove_file(host.workspace().join("constellation-mastersecret.json")).unwrap();
    let asked = host.run(&["apply"]);
    assert!(!asked.status.success());
    let said = stdout(&asked);
    for part in [
        "the machines were made with another master secret",
        "remove control-plane-0",
        "create worker-0",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(host.machines().starts("control-plane-0"), 1);
    assert!(!host.files().contains(&"constellation-mastersecret.json".to_owned()));
}

#[test]
fn verify_tells_a_machine_that_took_a_nodes_place() {
    let (host, _node) = made();
    let other = ScriptedNode::new(SOFTWARE_TPM);
    let member = Some(control_plane(derived_id(&host)));
    other.serve(&host, ports(&host).verify, &[Purpose::Verify], Answer::Never, member);
    let report = host.run(&["verify", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&report)).unwrap();
    let node = &report["nodes"][0];
    assert_eq!(node["verdict"], "contraindicated", "{report}");
    assert!(matches(node).all(|matches| matches), "{report}");
    assert!(
        node["reason"].as_str().unwrap().starts_with("another machine answers"),
        "{report}"
    );
}

fn verify_does_not_let_one_node_answer_for_another(technology: &'static dyn Technology) {
    let (host, node) = (configured(technology), ScriptedNode::new(technology));
    host.until(&["mini", "up"], BOOTS).kill();
    let made = workspace(&host).state().unwrap().unwrap().infrastructure.unwrap();
    let member = Some(control_plane(derived_id(&host)));
    let ports: Vec<u16> = made.nodes.iter().map(|node| node.ports.verify).collect();
    node.serve(&host, ports[0], &[Purpose::Verify], Answer::Never, member);
    node.forward(ports[1], ports[0]);
    let output = host.run(&["verify", "--cluster-id", &derived_id(&host).to_string(), "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["nodes"][0]["verdict"], "affirming");
    assert_eq!(report["nodes"][1]["verdict"], "contraindicated");
    assert!(
        report["nodes"][1]["reason"]
            .as_str()
            .unwrap()
            .contains("control-plane-0")
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn no_secret_reaches_logs_arguments_environments_or_other_files() {
    let (host, node) = (released(), ScriptedNode::new(SOFTWARE_TPM));
    let running = host.until(&["mini", "up"], BOOTS);
    node.serve_init(&host, Answer::Failure);
    let (_, said) = running.end();
    let secret = workspace(&host).master_secret().unwrap();
    let state = workspace(&host).state().unwrap().unwrap();
    let key = secret.expose_key();
    let needles = [
        BASE64_STANDARD.encode(key).into_bytes(),
        BASE64_URL_SAFE.encode(key).into_bytes(),
        hex::encode(key).into_bytes(),
        key.to_vec(),
        hex::encode(state.init_secret.expose()).into_bytes(),
        state.init_secret.expose().to_vec(),
    ];
    let mut places = vec![("what was said".to_owned(), said.into_bytes())];
    for pid in host.processes() {
        for file in ["cmdline", "environ"] {
            let path = format!("/proc/{pid}/{file}");
            places.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    for path in files_below(&host.workspace()) {
        let may_hold_one = ["constellation-state.yaml", "constellation-mastersecret.json"];
        if !may_hold_one.iter().any(|name| path.ends_with(name)) && fs::metadata(&path).unwrap().len() < 1 << 20 {
            places.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    assert!(places.len() > 10);
    for (place, content) in places {
        for needle in &needles {
            assert!(
                !content.windows(needle.len()).any(|window| window == needle),
                "a secret is in {place}"
            );
        }
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let deeper = folders.iter().flat_map(|folder| files_below(folder));
    files.into_iter().filter(|path| path.is_file()).chain(deeper).collect()
}

/// A cluster as far as the CLI knows, and the first node that made it.
fn made() -> (Host, ScriptedNode) {
    made_on(configured(SOFTWARE_TPM))
}

fn made_on(host: Host) -> (Host, ScriptedNode) {
    let node = ScriptedNode::new(SOFTWARE_TPM);
    let mut running = host.until(&["mini", "up"], BOOTS);
    node.serve_init(&host, Answer::Success(derived_id(&host)));
    running.until("publishing the policy\n");
    running.kill();
    (host, node)
}

/// Everything that a command could have changed.
fn everything(host: &Host) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = files_below(&host.workspace())
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

/// The reference values of an image that measures something else.
fn another_image(document: &str) -> String {
    let other = document.replacen("00000000", "11111111", 1);
    assert_ne!(other, document);
    other
}

#[test]
fn what_a_cluster_cannot_change_is_refused_by_name_and_nothing_of_it_is_applied() {
    let (host, _node) = made();
    // Otherwise the digest alone refuses another list.
    host.change_config("kubernetesComponentsDigest:", "# kubernetesComponentsDigest:");
    let config = host.workspace().join("constellation-conf.yaml");
    let secret = host.workspace().join("constellation-mastersecret.json");
    let other_secret = MasterSecret::generate().to_json();
    let image = fs::read_to_string(host.path("image/reference-values.json")).unwrap();
    let other_image = another_image(&image);
    let other_components = r#"[{"url":"a","hash":"sha256:HASH","install_path":"/a","extract":false}]"#;
    let other_components = support::COMPONENTS.replace("[]", &other_components.replace("HASH", &"ab".repeat(32)));
    for (file, from, to, named) in [
        (
            &config,
            "name: mini",
            "name: maxi",
            &["name: the cluster was created with mini, but the workspace now has maxi"][..],
        ),
        (
            &config,
            "v1.35.4",
            "v1.35.5",
            &["kubernetesVersion: the cluster was created with v1.35.4", "upgrade"],
        ),
        (
            &config,
            "10.96.0.0/12",
            "10.100.0.0/16",
            &["serviceCIDR", "10.100.0.0/16", "only when a cluster is created"],
        ),
        (
            &config,
            "vcpus: 2 # control",
            "vcpus: 4 #",
            &["control_plane_default.vcpus of control-plane-0"],
        ),
        (
            &config,
            "memoryMiB: 2048\n    stateDiskSizeGB: 20 # workers",
            "memoryMiB: 4096",
            &["worker_default.memoryMiB of worker-0"],
        ),
        (
            &config,
            "stateDiskSizeGB: 20 # workers",
            "stateDiskSizeGB: 40",
            &["worker_default.stateDiskSizeGB"],
        ),
        (
            &host.path("image/reference-values.json"),
            &image,
            &other_image,
            &["image: the cluster was created with"],
        ),
        (
            &host.path("mirror/components.json"),
            support::COMPONENTS,
            &other_components,
            &["mirror: the cluster was created with"],
        ),
        (
            &secret,
            &fs::read_to_string(&secret).unwrap(),
            &other_secret,
            &["constellation-mastersecret.json"],
        ),
    ] {
        let good = fs::read_to_string(file).unwrap();
        assert!(good.contains(from), "{from}");
        fs::write(file, good.replacen(from, to, 1)).unwrap();
        let before = everything(&host);
        let applied = host.run(&["apply", "--yes"]);
        let said = stderr(&applied);
        assert_eq!(applied.status.code(), Some(1), "{to}: {said}");
        for part in named.iter().chain(&["nothing was done", "constellation terminate"]) {
            assert!(said.contains(part), "{to}: {said}");
        }
        assert!(before == everything(&host), "{to}: something was applied");
        fs::write(file, good).unwrap();
    }
    host.until(&["apply", "--yes"], "reaching the control plane\n").kill();
}

fn state_file(host: &Host) -> PathBuf {
    host.workspace().join("constellation-state.yaml")
}

/// A cluster, and its state as it was before the cluster.
fn made_with_older_state() -> (Host, String) {
    let (host, node) = (configured(SOFTWARE_TPM), ScriptedNode::new(SOFTWARE_TPM));
    let mut running = host.until(&["mini", "up"], BOOTS);
    let older = fs::read_to_string(state_file(&host)).unwrap();
    node.serve_init(&host, Answer::Success(derived_id(&host)));
    running.until("publishing the policy\n");
    running.kill();
    (host, older)
}

/// Neither running machines nor, after they have stopped, their disks.
#[test]
fn a_state_that_is_missing_or_older_than_the_cluster_costs_no_machine() {
    let (host, older) = made_with_older_state();
    let right = fs::read(state_file(&host)).unwrap();
    let begun = older.replace("init: not-started", "init: started");
    assert_ne!(begun, older);
    for stopped in [false, true] {
        if stopped {
            host.machines().stop("control-plane-0", "the power failed");
        }
        for state in [None, Some(&older), Some(&begun)] {
            match state {
                Some(state) => fs::write(state_file(&host), state).unwrap(),
                None => fs::remove_file(state_file(&host)).unwrap(),
            }
            let before = everything(&host);
            let shown = stdout(&host.run(&["status"]));
            for command in [&["mini", "up"][..], &["apply", "--yes"]] {
                let output = host.run(command);
                let said = stderr(&output);
                assert_eq!(output.status.code(), Some(1), "{said}");
                for part in [
                    "nothing was done",
                    "Next: restore constellation-state.yaml from a backup",
                    "constellation terminate",
                ] {
                    assert!(said.contains(part), "{command:?}, {state:?}: {said}");
                }
                for text in [&said, &shown] {
                    let machine = if stopped {
                        "control-plane-0 (stopped)"
                    } else {
                        "control-plane-0 (running)"
                    };
                    assert!(text.contains(machine), "{command:?}, {state:?}: {text}");
                    assert!(!text.contains("move it") && !text.contains("no cluster here"), "{text}");
                }
            }
            assert!(before == everything(&host), "{state:?}: something was changed");
        }
    }
    fs::write(state_file(&host), right).unwrap();
    let running = host.until(&["apply", "--yes"], "reaching the control plane\n");
    assert!(running.said.contains("restart control-plane-0"), "{}", running.said);
    running.kill();
}

#[test]
fn machines_without_a_state_are_shown_and_terminated() {
    let (host, _) = made_with_older_state();
    for name in ["constellation-state.yaml", "constellation-admin.conf"] {
        fs::remove_file(host.workspace().join(name)).unwrap();
    }
    let said = stderr(&host.run(&["mini", "up"]));
    assert!(said.contains("constellation-state.yaml is missing"), "{said}");
    let shown = stdout(&host.run(&["status"]));
    assert!(shown.lines().any(|line| line.starts_with("worker-0 ")), "{shown}");
    assert!(host.run(&["terminate", "--yes"]).status.success());
    assert!(stdout(&host.run(&["status"])).contains("There is no cluster here"));
}

/// Only `--yes` replaces machines that run.
#[test]
fn fresh_machines_are_asked_for_by_name_and_with_their_disks() {
    let (host, older) = made_with_older_state();
    fs::remove_file(host.workspace().join("constellation-admin.conf")).unwrap();
    fs::write(state_file(&host), older.replace("init: not-started", "init: started")).unwrap();
    let before = everything(&host);
    let output = host.run(&["apply"]);
    let asked = stdout(&output);
    for part in [
        "because the last run was interrupted",
        "  remove control-plane-0 and its state disk\n",
        "  create control-plane-0\n",
    ] {
        assert!(asked.contains(part), "{asked}");
    }
    assert_eq!(output.status.code(), Some(1));
    assert!(before == everything(&host), "something was changed");
}

/// What a run leaves that is killed between its last two writes: the kubeconfig is there, and the state does not say so yet.
fn interrupt(host: &Host) {
    let mut state = workspace(host).state().unwrap().unwrap();
    state.init = InitProgress::Started;
    state.cluster_id = None;
    state.members.clear();
    workspace(host).save_state(&state).unwrap();
}

fn secret_file(host: &Host) -> PathBuf {
    host.workspace().join("constellation-mastersecret.json")
}

#[test]
fn a_secret_that_was_missing_for_a_while_comes_back_and_no_other_takes_its_place() {
    let (host, _node) = made();
    let right = fs::read(secret_file(&host)).unwrap();
    fs::remove_file(secret_file(&host)).unwrap();
    let before = everything(&host);
    let said = stderr(&host.run(&["apply", "--yes"]));
    assert!(
        said.contains("constellation-mastersecret.json does not exist"),
        "{said}"
    );
    assert!(before == everything(&host), "something was applied");

    fs::write(secret_file(&host), MasterSecret::generate().to_json().as_bytes()).unwrap();
    let said = stderr(&host.run(&["apply", "--yes"]));
    assert!(
        said.contains("constellation-mastersecret.json: the cluster was created with"),
        "{said}"
    );
    fs::write(secret_file(&host), right).unwrap();
    host.until(&["apply", "--yes"], "reaching the control plane\n").kill();
}

#[test]
fn a_run_that_was_interrupted_at_its_end_is_finished_with_the_same_secret_only() {
    let (host, node) = made();
    interrupt(&host);
    let right = fs::read(secret_file(&host)).unwrap();
    fs::write(secret_file(&host), MasterSecret::generate().to_json().as_bytes()).unwrap();
    let before = everything(&host);
    let said = stderr(&host.run(&["apply", "--yes"]));
    assert!(
        said.contains("constellation-mastersecret.json: the cluster was created with"),
        "{said}"
    );
    assert!(before == everything(&host), "something was stored");

    fs::write(secret_file(&host), right).unwrap();
    host.until(&["apply", "--yes"], "reaching the control plane\n").kill();
    let state = workspace(&host).state().unwrap().unwrap();
    assert_eq!(
        (state.init, state.cluster_id),
        (InitProgress::Done, Some(derived_id(&host)))
    );
    assert_eq!(node.asked.lock().unwrap().len(), 1);
}

#[test]
fn the_first_node_of_an_interrupted_run_keeps_its_disk() {
    let (host, _node) = made();
    interrupt(&host);
    host.machines().stop("control-plane-0", "the power failed");
    let running = host.until(&["apply", "--yes"], "reaching the control plane\n");
    assert!(running.said.contains("restart control-plane-0"), "{}", running.said);
    running.kill();
}

#[test]
fn a_kubeconfig_that_the_user_merged_or_renamed_does_not_stop_apply() {
    let (host, _node) = made();
    let path = host.workspace().join("constellation-admin.conf");
    let written = fs::read_to_string(&path).unwrap();
    let port = ports(&host).kubernetes;
    let renamed = written.replace("127.0.0.1", "localhost");
    assert_ne!(renamed, written);
    let mut merged: serde_json::Value = serde_saphyr::from_str(&written).unwrap();
    let other = serde_json::json!({"name": "other", "cluster": {"server": "https://other:6443"}});
    merged["clusters"].as_array_mut().unwrap().insert(0, other);
    let merged = merged.to_string();
    let moved = renamed.replace(&port.to_string(), "1").replace("admin", "boss");
    for (text, noted) in [(renamed, false), (merged, false), (moved, true)] {
        fs::write(&path, &text).unwrap();
        let running = host.until(&["apply", "--yes"], "reaching the control plane\n");
        assert_eq!(running.said.contains("was edited by hand"), noted, "{}", running.said);
        running.kill();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

/// The files are the same. Still the cluster keeps the list, which cannot change, and the nodes that join it follow.
#[test]
fn a_mirror_with_the_same_files_in_other_places_is_refused() {
    let host = Host::new();
    let list = host.path("mirror/components.json");
    let component = r#"[{"url":"a","hash":"sha256:HASH","install_path":"/a","extract":false}]"#;
    let good = support::COMPONENTS.replace("[]", &component.replace("HASH", &"ab".repeat(32)));
    fs::write(&list, &good).unwrap();
    host.configure();
    let (host, _node) = made_on(host);
    // Otherwise the digest alone refuses another list.
    host.change_config("kubernetesComponentsDigest:", "# kubernetesComponentsDigest:");
    for (from, to) in [
        (r#""url":"a""#, r#""url":"b""#),
        (r#""/a""#, r#""/b""#),
        ("false", "true"),
    ] {
        fs::write(&list, good.replace(from, to)).unwrap();
        let said = stderr(&host.run(&["apply", "--yes"]));
        assert!(said.contains("mirror: the cluster was created with"), "{to}: {said}");
    }
}

/// The host may not have had the memory for it.
#[test]
fn a_node_whose_machine_was_never_created_can_still_get_another() {
    let (host, _node) = made();
    // What a run leaves that ended before it created the machine.
    let mut state = workspace(&host).state().unwrap().unwrap();
    let nodes = &mut state.made_of.as_mut().unwrap().nodes;
    let mut wanted = nodes
        .values()
        .find(|node| node.name.as_str() == "worker-0")
        .unwrap()
        .clone();
    wanted.name = "worker-1".parse().unwrap();
    wanted.memory_mib = 1 << 20;
    nodes.insert(wanted.name.clone(), wanted);
    workspace(&host).save_state(&state).unwrap();

    host.change_config("initialCount: 1 # workers", "initialCount: 2 # workers");
    lead_to(&host, api_server("200 OK", |_| "{}".to_owned()));
    host.until(&["apply", "--yes"], "creating the machines: done").kill();
    assert_eq!(host.machines().spec("worker-1").memory_mib, 2048);
}

#[test]
fn until_there_is_a_cluster_a_change_gets_fresh_machines() {
    let host = configured(SOFTWARE_TPM);
    host.until(&["mini", "up"], BOOTS).kill();
    host.change_config("vcpus: 2 # control", "vcpus: 4 # control");
    let running = host.until(&["mini", "up"], BOOTS);
    assert!(running.said.contains("fresh machines"), "{}", running.said);
    running.kill();
    assert_eq!(host.machines().spec("control-plane-0").vcpus, 4);
}

/// The node of the first run may have stored the first policy.
#[test]
fn a_policy_that_says_something_else_has_the_next_serial_and_the_same_has_none() {
    let host = configured(SOFTWARE_TPM);
    let newest = || workspace(&host).state().unwrap().unwrap().policy.unwrap();
    host.until(&["mini", "up"], BOOTS).kill();
    let first = newest();
    host.until(&["mini", "up"], BOOTS).kill();
    assert_eq!(newest(), first);
    let document = host.path("image/reference-values.json");
    let other = another_image(&fs::read_to_string(&document).unwrap());
    fs::write(document, &other).unwrap();
    host.until(&["mini", "up"], BOOTS).kill();
    let operator = *first.signer();
    let second = newest().believe(|signer| *signer == operator).unwrap();
    assert_eq!((second.serial, second.images[0].to_json()), (2, other));
}

/// Whoever edits the workspace says everywhere that the cluster was made from another image, except in what only the operator can sign.
#[test]
fn no_policy_is_signed_for_a_cluster_that_has_one() {
    let (host, _node) = made();
    let document = host.path("image/reference-values.json");
    let other = another_image(&fs::read_to_string(&document).unwrap());
    fs::write(document, &other).unwrap();
    let mut state = workspace(&host).state().unwrap().unwrap();
    state.made_of.as_mut().unwrap().reference_values = other;
    for policy in [state.policy.clone(), None] {
        state.policy.clone_from(&policy);
        workspace(&host).save_state(&state).unwrap();
        let output = host.run(&["apply", "--yes"]);
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.contains("the cluster's policy does not list the image"), "{said}");
        assert_eq!(workspace(&host).state().unwrap().unwrap().policy, policy);
    }
}

/// Whoever can write the state file puts in a policy that another operator signed.
#[test]
fn verify_refuses_a_policy_that_is_not_the_operators() {
    let (host, _node) = made();
    let mut state = workspace(&host).state().unwrap().unwrap();
    let operator = *state.policy.as_ref().unwrap().signer();
    let policy = state.policy.unwrap().believe(|signer| *signer == operator).unwrap();
    let other = OperatorKey::from_seed(&[9; 32]);
    state.policy = Some(BelievedPolicy::sign(&policy, &other).unwrap().into_signed());
    workspace(&host).save_state(&state).unwrap();
    let output = host.run(&["verify"]);
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(
        error.contains("constellation-state.yaml has another operator's cluster policy"),
        "{error}"
    );

    // The operator's own for an earlier cluster, or the id of another cluster.
    let mut state = workspace(&host).state().unwrap().unwrap();
    let elsewhere = ClusterPolicy {
        cluster: ClusterId::new([9; 32]),
        ..(*policy).clone()
    };
    let operator = OperatorKey::of(&workspace(&host).master_secret().unwrap());
    state.policy = Some(BelievedPolicy::sign(&elsewhere, &operator).unwrap().into_signed());
    workspace(&host).save_state(&state).unwrap();
    let output = host.run(&["verify"]);
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(error.contains("the cluster policy is for cluster 0909"), "{error}");
}

#[test]
fn verify_expects_what_the_cluster_was_made_from() {
    let (host, node) = made();
    let member = Some(control_plane(derived_id(&host)));
    node.serve(&host, ports(&host).verify, &[Purpose::Verify], Answer::Never, member);
    let document = host.path("image/reference-values.json");
    let other = another_image(&fs::read_to_string(&document).unwrap());
    fs::write(document, other).unwrap();
    let report = host.run(&["verify", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&report)).unwrap();
    assert_eq!(report["nodes"][0]["verdict"], "affirming", "{report}");
}

/// Something takes the connections of a node that is gone, as what forwards its ports does.
#[test]
fn verify_and_status_name_a_node_that_does_not_answer_within_30_s() {
    let (host, _node) = made();
    let ports = ports(&host);
    let _forwarded =
        [ports.verify, ports.verify_http].map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).unwrap());
    let begun = Instant::now();
    let status = host.command(&["status"]).stdout(Stdio::piped()).spawn().unwrap();
    let verified = stdout(&host.run(&["verify", "-o", "json"]));
    let status = stdout(&status.wait_with_output().unwrap());
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    let report: serde_json::Value = serde_json::from_str(&verified).unwrap();
    assert_eq!(report["nodes"][0]["verdict"], "unreachable", "{verified}");
    assert!(status.contains("  does not answer\n"), "{status}");
}

#[test]
fn a_control_plane_whose_ports_were_lost_gets_others_and_its_kubeconfig_follows() {
    let (host, node) = (released(), ScriptedNode::new(SOFTWARE_TPM));
    let mut running = host.until(&["mini", "up"], BOOTS);
    node.serve_init(&host, Answer::Success(derived_id(&host)));
    running.until("publishing the policy\n");
    running.kill();
    let before = ports(&host);
    let record = fs::read(
        host.workspace()
            .join("constellation-qemu/nodes/control-plane-0/qemu.process"),
    )
    .unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let killed = Command::new("kill").arg(record["pid"].to_string()).status().unwrap();
    assert!(killed.success());
    while stdout(&host.run(&["status"])).contains("control-plane-0      control-plane  10.42.1.100     running") {}
    let _somebody = std::net::TcpListener::bind(("127.0.0.1", before.kubernetes)).unwrap();
    let running = host.until(&["apply", "--yes"], "reaching the control plane\n");
    assert!(running.said.contains("restart control-plane-0"), "{}", running.said);
    running.kill();
    let after = ports(&host);
    assert_ne!(after.kubernetes, before.kubernetes);
    assert_eq!(after.verify, before.verify);
    let kubeconfig = fs::read_to_string(host.workspace().join("constellation-admin.conf")).unwrap();
    assert!(
        kubeconfig.contains(&format!("https://127.0.0.1:{}", after.kubernetes)),
        "{kubeconfig}"
    );
}
