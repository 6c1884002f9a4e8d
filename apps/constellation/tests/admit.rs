//! How machines of each technology become control planes: who gets a role grant, and when.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use attestation::{AttestedIdentity, Membership, Purpose, UnixTime};
use attested_tls::{Endpoint, PeerPolicy, incoming};
use cluster_config::{ClusterState, Workspace};
use cluster_types::{NodeRole, OperatorPublicKey};
use digest::Digest;
use grpc_api::grant::api_server::{Api, ApiServer};
use grpc_api::grant::{PresentGrantRequest, PresentGrantResponse};
use operator_key::OperatorKey;
use role_grant::{RequestedRole, RoleGrant};
use serde_json::json;
use support::Host;
use support::api_server::{api_server_with, made_with};
use test_machines::{Machine, Technology, for_each_technology};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::{Request, Response, Status};

for_each_technology!(sync:
    control_planes_get_grants_for_their_machines_one_after_the_other,
    a_machine_of_another_operator_gets_no_grant,
    a_machine_that_took_the_place_of_another_gets_no_grant,
    a_machine_that_joins_already_is_waited_for,
    a_machine_that_got_a_grant_keeps_its_disk,
);

const FIRST: &str = "admitting control-plane-1\n";
const SECOND: &str = "admitting control-plane-2\n";

/// The grants that came, by node.
type Grants = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A new machine that takes any grant.
struct Waiting {
    name: String,
    grants: Grants,
    workspace: Workspace,
}

#[tonic::async_trait]
impl Api for Waiting {
    async fn present_grant(
        &self,
        request: Request<PresentGrantRequest>,
    ) -> Result<Response<PresentGrantResponse>, Status> {
        let PresentGrantRequest { role_grant } = request.into_inner();
        // Whatever becomes of the program now, the next run knows.
        let stored = self.workspace.state().unwrap().unwrap();
        assert!(stored.granted.contains(&self.name.parse().unwrap()));
        self.grants.lock().unwrap().push((self.name.clone(), role_grant));
        Ok(Response::new(PresentGrantResponse {}))
    }
}

/// A cluster of one control plane that is to have three. Kubernetes has those that got a grant.
struct Growing {
    host: Host,
    runtime: Runtime,
    machines: [Box<dyn Machine>; 2],
    grants: Grants,
}

impl Growing {
    fn new(technology: &'static dyn Technology) -> Self {
        let grants = Grants::default();
        let granted = grants.clone();
        let api_server = api_server_with(move |request| {
            let granted = granted.lock().unwrap();
            match request.split_once("/nodes/control-plane-") {
                Some((_, number)) => {
                    let name = format!("control-plane-{}", &number[..1]);
                    let is_member = granted.iter().any(|(node, _)| *node == name);
                    if is_member {
                        ("200 OK", member(&name))
                    } else {
                        ("404 Not Found", missing())
                    }
                }
                None => ("200 OK", config_map()),
            }
        });
        let count = |host: &Host| host.change_config("initialCount: 1 # control", "initialCount: 3 # control");
        Self {
            host: made_with(technology, api_server, count),
            runtime: Runtime::new().unwrap(),
            machines: [technology.power_on().unwrap(), technology.power_on().unwrap()],
            grants,
        }
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

    fn identity(&self, number: usize) -> AttestedIdentity {
        self.machines[number - 1].attester().unwrap().identity()
    }

    fn serve(&self, number: usize, operator: &OperatorPublicKey) {
        let attester = self.machines[number - 1].attester().unwrap();
        attester.measure_operator(operator).unwrap();
        let peer = PeerPolicy::Unattested { reason: "a test" };
        let endpoint = Arc::new(Endpoint::new(Some(attester), peer));
        let name = format!("control-plane-{number}");
        let nodes = self.state().infrastructure.unwrap().nodes;
        let port = nodes
            .iter()
            .find(|node| node.name.as_str() == name)
            .unwrap()
            .ports
            .bootstrapper;
        let (grants, workspace) = (self.grants.clone(), self.workspace());
        self.runtime.block_on(async {
            let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port)))
                .await
                .unwrap();
            let server = tonic::transport::Server::builder().add_service(ApiServer::new(Waiting {
                name,
                grants,
                workspace,
            }));
            tokio::spawn(server.serve_with_incoming(incoming(listener, endpoint, &[Purpose::Grant])));
        });
    }

    fn granted(&self) -> Vec<String> {
        self.grants
            .lock()
            .unwrap()
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }
}

fn member(name: &str) -> String {
    json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": { "name": name, "labels": { "node-role.kubernetes.io/control-plane": "" } },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    })
    .to_string()
}

fn missing() -> String {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound", "code": 404 })
        .to_string()
}

fn config_map() -> String {
    json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": "x" } }).to_string()
}

fn control_planes_get_grants_for_their_machines_one_after_the_other(technology: &'static dyn Technology) {
    let growing = Growing::new(technology);
    let operator = growing.operator();
    growing.serve(2, &operator);
    let mut running = growing.host.until(&["apply", "--yes"], FIRST);
    assert!(growing.granted().is_empty());
    growing.serve(1, &operator);
    running.until("waiting for all nodes\n");
    let said = running.said.clone();
    running.kill();
    assert!(said.find(FIRST) < said.find(SECOND), "{said}");
    assert_eq!(growing.granted(), ["control-plane-1", "control-plane-2"]);
    for (number, (_, grant)) in (1..).zip(&*growing.grants.lock().unwrap()) {
        let requested = RequestedRole {
            cluster: growing.state().cluster_id.unwrap(),
            machine: growing.identity(number),
            role: NodeRole::ControlPlane,
        };
        let checked = |now| RoleGrant::check(grant, &operator, &requested, 1, UnixTime::from_seconds(now));
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        checked(now).unwrap();
        assert!(checked(now + 3601).is_err());
    }
    let (state, name) = (growing.state(), "control-plane-1".parse().unwrap());
    assert_eq!(state.identities[&name], Digest::new(*growing.identity(1).as_bytes()));
    assert!(state.members.contains(&name) && state.granted.is_empty());
    // The next run has nobody to admit.
    let running = growing.host.until(&["apply", "--yes"], "waiting for all nodes\n");
    assert!(!running.said.contains("admitting"), "{}", running.said);
    running.kill();
}

fn a_machine_of_another_operator_gets_no_grant(technology: &'static dyn Technology) {
    let growing = Growing::new(technology);
    growing.serve(1, &OperatorPublicKey::new([1; 32]));
    let (code, said) = growing.host.until(&["apply", "--yes"], FIRST).end();
    assert_eq!(code, Some(1));
    assert!(said.contains("control-plane-1 is not the expected node"), "{said}");
    assert!(growing.granted().is_empty());
}

fn a_machine_that_took_the_place_of_another_gets_no_grant(technology: &'static dyn Technology) {
    let growing = Growing::new(technology);
    let mut state = growing.state();
    let name = "control-plane-1".parse().unwrap();
    state
        .identities
        .insert(name, Digest::of(b"the machine that got a grant in an earlier run"));
    growing.workspace().save_state(&state).unwrap();
    growing.serve(1, &growing.operator());
    let (code, said) = growing.host.until(&["apply", "--yes"], FIRST).end();
    assert_eq!(code, Some(1));
    assert!(said.contains("it gets no role grant"), "{said}");
    assert!(growing.granted().is_empty());
}

/// The last run ended after it had presented the grant.
fn a_machine_that_joins_already_is_waited_for(technology: &'static dyn Technology) {
    let growing = Growing::new(technology);
    growing.serve(1, &growing.operator());
    let membership = Membership::new(growing.state().cluster_id.unwrap(), NodeRole::ControlPlane);
    let attester = growing.machines[0].attester().unwrap();
    attester.measure_membership(&membership).unwrap();
    let mut running = growing.host.until(&["apply", "--yes"], FIRST);
    running.until("control-plane-1: starting\n");
    assert!(growing.granted().is_empty());
    growing
        .grants
        .lock()
        .unwrap()
        .push(("control-plane-1".to_owned(), Vec::new()));
    running.until(SECOND);
    running.kill();
}

/// etcd on it may vote, and the cluster may need that vote to answer.
fn a_machine_that_got_a_grant_keeps_its_disk(technology: &'static dyn Technology) {
    let growing = Growing::new(technology);
    let mut state = growing.state();
    state.granted.insert("control-plane-1".parse().unwrap());
    growing.workspace().save_state(&state).unwrap();
    growing.host.machines().stop("control-plane-1", "the power failed");
    let restarted = "restart control-plane-1, which stopped\n";
    growing.host.until(&["apply", "--yes"], restarted).kill();
}
