//! The join service and the key service as processes, with a real API server and machines of each technology.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use attestation::{Membership, Purpose};
use attested_tls::HandshakeError;
use base64::prelude::{BASE64_STANDARD, Engine};
use cluster_objects::{Cluster, components_config_map, joining_node_group};
use cluster_types::{ClusterId, NodeName, NodeRole, OperatorPublicKey};
use deployment::Object;
use digest::Digest;
use grpc_api::join::api_client::ApiClient;
use grpc_api::join::{IssueJoinTicketRequest, IssueRejoinTicketRequest};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use key_derivation::DiskOwner;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use kubernetes_components::{Component, ComponentList};
use node_secrets::SHARED_FILES;
use polling::{Failed, Schedule};
use serde_json::{Value, json};
use test_machines::{SOFTWARE_TPM, Technology, for_each_technology};
use test_services::{
    Admitted, ControlPlane, JoinConfigExample, JoiningNode, client_certificate_request, join_request,
    serving_certificate_request,
};
use tonic::{Code, Status};

/// The UUID of a disk that nobody has.
const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";

for_each_technology!(async:
    nodes_get_what_is_theirs_and_nothing_else,
    bad_input_to_each_field_gives_one_error_that_names_it,
    another_operators_nodes_get_no_session,
    nodes_that_are_not_what_they_should_be_get_no_session,
    an_edited_configuration_changes_neither_who_is_admitted_nor_what_is_installed,
);

async fn start(technology: &dyn Technology) -> ControlPlane {
    let program = Path::new(env!("CARGO_BIN_EXE_join-service"));
    ControlPlane::start(program.parent().unwrap(), technology)
        .await
        .unwrap()
}

/// Each node has an address of its own.
fn request(name: &str) -> IssueJoinTicketRequest {
    let number = name.as_bytes()[name.len() - 1];
    request_at(name, [10, 42, 2, number])
}

fn request_at(name: &str, address: [u8; 4]) -> IssueJoinTicketRequest {
    join_request(name, address)
}

fn rejoin(disk: &str) -> IssueRejoinTicketRequest {
    IssueRejoinTicketRequest {
        disk_uuid: disk.into(),
        is_control_plane: false,
    }
}

/// The refusal is of this kind, names the field and gives the reason.
fn check_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, what: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().starts_with(what), "{}", status.message());
    assert_eq!(status.message().lines().count(), 1, "{}", status.message());
}

fn check_denied<T: std::fmt::Debug>(result: Result<T, Status>, what: &str) {
    check_refused(result, Code::PermissionDenied, what);
}

/// The refusal names the field, and nothing about the owner of the disk or the name.
fn check_not_owner<T: std::fmt::Debug>(result: Result<T, Status>, what: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, what));
}

async fn nodes_get_what_is_theirs_and_nothing_else(technology: &'static dyn Technology) {
    let control_plane = start(technology).await;
    let kek = control_plane.master_secret().kek();
    let worker = JoiningNode::boot(technology).unwrap();

    // The node sees that the service belongs to an initialised node of its own image.
    let session = control_plane.session(&worker, Purpose::Join).await.unwrap();
    let expected = Membership::new(control_plane.cluster_id(), NodeRole::ControlPlane);
    assert!(session.node.unwrap().result().statements().membership.is(&expected));
    let admitted = control_plane.join(&worker, request("worker-0")).await;
    let Admitted { ticket, secrets } = admitted.unwrap_or_else(|error| panic!("{error}\n{}", control_plane.logs()));
    let key_of = |node: &JoiningNode, disk| {
        let identity = node.attester().identity();
        let owner = DiskOwner {
            cluster: control_plane.cluster_id(),
            machine: *identity.as_bytes(),
            role: NodeRole::Worker,
        };
        *kek.state_disk_key(disk, &owner).expose()
    };
    assert_eq!(*secrets.state_disk_key.expose(), key_of(&worker, secrets.disk));
    assert_eq!(secrets.measurement_secret.expose(), kek.measurement_secret().expose());
    assert_eq!(ticket.token.len(), 23);
    assert_eq!(&secrets.cluster_ca, control_plane.key_service().cluster_ca());
    assert!(secrets.control_plane.is_none());
    assert_eq!(secrets.policy, Digest::of(&ticket.cluster_policy));

    // The same machine can request a ticket again, and gets a disk that holds nothing.
    let again = control_plane.join(&worker, request("worker-0")).await.unwrap().secrets;
    assert_ne!(again.disk, secrets.disk);
    assert_eq!(*again.state_disk_key.expose(), key_of(&worker, again.disk));
    // Another machine gets neither its disk key nor its name, and does not learn whose they are. It can still have a name of its own,
    // and no more than one.
    let thief = JoiningNode::boot(technology).unwrap();
    let not_its_name = "node_name or node_address is not this machine's";
    check_not_owner(control_plane.join(&thief, request("worker-0")).await, not_its_name);
    let refused = control_plane.rejoin(&thief, secrets.disk).await;
    check_not_owner(refused, "this machine is not a node of this cluster");
    control_plane.join(&thief, request("worker-1")).await.unwrap();
    check_not_owner(control_plane.join(&thief, request("worker-2")).await, not_its_name);
    check_not_owner(control_plane.join(&worker, request("worker-3")).await, not_its_name);

    // Nobody serves at another node's address, at the API server's, or at that of its Service.
    let another = JoiningNode::boot(technology).unwrap();
    let worker_0 = [10, 42, 2, b'0'];
    let stolen = control_plane.join(&another, request_at("worker-4", worker_0)).await;
    check_not_owner(stolen, not_its_name);
    for (address, what) in [
        (
            [10, 42, 1, 100],
            "node_address is refused: 10.42.1.100 is the API server's",
        ),
        (
            [10, 96, 0, 1],
            "node_address is refused: \"10.96.0.1\" is not an IPv4 address that a node can have",
        ),
    ] {
        let refused = control_plane.join(&another, request_at("worker-4", address)).await;
        check_refused(refused, Code::InvalidArgument, what);
    }

    // A control plane needs the operator's grant for exactly this machine.
    let wish = |grant| IssueJoinTicketRequest {
        is_control_plane: true,
        role_grant: grant,
        ..request("worker-0")
    };
    check_denied(
        control_plane.join(&worker, wish(Vec::new())).await,
        "role_grant is refused: a control-plane needs a role grant",
    );
    check_denied(
        control_plane.join(&worker, wish(control_plane.grant(&thief))).await,
        "role_grant is refused: the role grant is for machine",
    );
    let granted = control_plane
        .join(&worker, wish(control_plane.grant(&worker)))
        .await
        .unwrap();
    let granted = granted.secrets.control_plane.unwrap();
    let master_secret = control_plane.master_secret();
    assert_eq!(granted.master_secret.expose_key(), master_secret.expose_key());
    assert_eq!(granted.files.len(), SHARED_FILES.len());

    // After a reboot the machine gets its disk key again, whichever of the tickets it used.
    for disk in [secrets.disk, again.disk] {
        let rejoined = control_plane.rejoin(&worker, disk).await.unwrap();
        assert_eq!(*rejoined.state_disk_key.expose(), key_of(&worker, disk));
        assert!(rejoined.control_plane.is_none());
    }
    // Another one gets a key that opens nothing, and one that never requested a ticket gets nothing.
    let stolen = control_plane.rejoin(&thief, secrets.disk).await.unwrap();
    assert_eq!(*stolen.state_disk_key.expose(), key_of(&thief, secrets.disk));
    assert_ne!(*stolen.state_disk_key.expose(), key_of(&worker, secrets.disk));
    let stranger = JoiningNode::boot(technology).unwrap();
    let refused = control_plane.rejoin(&stranger, secrets.disk).await;
    check_not_owner(refused, "this machine is not a node of this cluster");
    // A session for one purpose does not serve the other.
    let session = control_plane.session(&thief, Purpose::Rejoin).await.unwrap();
    check_refused(
        ApiClient::new(session.channel)
            .issue_join_ticket(request("worker-1"))
            .await,
        Code::PermissionDenied,
        "the session is not attested for this purpose",
    );

    let logs = control_plane.logs();
    for secret in [
        hex::encode(kek.measurement_secret().expose()),
        hex::encode(control_plane.master_secret().expose_key()),
    ] {
        assert!(!logs.contains(&secret));
    }
}

async fn bad_input_to_each_field_gives_one_error_that_names_it(technology: &'static dyn Technology) {
    type Change = fn(&mut IssueJoinTicketRequest);
    let control_plane = start(technology).await;
    let node = JoiningNode::boot(technology).unwrap();
    let cases: [(Change, Code, &str); 7] = [
        (
            |m| m.node_address.clear(),
            Code::InvalidArgument,
            "node_address is refused: \"\" is not an IPv4 address",
        ),
        (
            |m| m.node_address = "10.42.2.1/8".into(),
            Code::InvalidArgument,
            "node_address is refused: \"10.42.2.1/8\" is not an IPv4 address",
        ),
        (
            |m| m.node_name = "../n".into(),
            Code::InvalidArgument,
            "node_name is invalid: ",
        ),
        (
            |m| m.is_control_plane = true,
            Code::PermissionDenied,
            "role_grant is refused: a control-plane needs a role grant",
        ),
        (
            |m| (m.is_control_plane, m.role_grant) = (true, vec![1]),
            Code::PermissionDenied,
            "role_grant is refused: the role grant is malformed",
        ),
        (
            |m| (m.is_control_plane, m.role_grant) = (true, vec![0; 1025]),
            Code::PermissionDenied,
            "role_grant is refused: the role grant is malformed",
        ),
        (
            |m| m.role_grant = vec![1],
            Code::PermissionDenied,
            "role_grant is refused: is_control_plane is not set, and only control planes need a grant",
        ),
    ];
    for (change, code, what) in cases {
        let mut message = request("n");
        change(&mut message);
        check_refused(control_plane.join(&node, message).await, code, what);
    }
    let session = control_plane.session(&node, Purpose::Rejoin).await.unwrap();
    let mut client = ApiClient::new(session.channel);
    for bad in ["", "measurementSecret", &DISK.to_uppercase(), &format!("{DISK}\n")] {
        let refused = client.issue_rejoin_ticket(rejoin(bad)).await;
        check_refused(
            refused,
            Code::InvalidArgument,
            &format!("disk_uuid is invalid: {bad:?}"),
        );
    }
}

/// What a service has written is read a moment later.
async fn until_logged(control_plane: &ControlPlane, text: &str) {
    let logged = async {
        while !control_plane.logs().contains(text) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let logged = tokio::time::timeout(Duration::from_secs(60), logged).await;
    assert!(logged.is_ok(), "{text:?} is not in {}", control_plane.logs());
}

/// A configuration is looked at a moment later.
async fn until_admitted(control_plane: &ControlPlane, worker: &JoiningNode) {
    let admitted = async {
        while control_plane.join(worker, request("worker-0")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), admitted).await.unwrap();
}

/// They run our image, and would be new nodes of their own cluster.
async fn another_operators_nodes_get_no_session(technology: &'static dyn Technology) {
    let control_plane = start(technology).await;
    let other = JoiningNode::boot_for(technology, &OperatorPublicKey::new([1; 32])).unwrap();
    let result = control_plane.session(&other, Purpose::Join).await;
    assert!(matches!(result, Err(HandshakeError::RefusedByPeer(_))));
    until_logged(&control_plane, "contraindicated").await;
}

async fn nodes_that_are_not_what_they_should_be_get_no_session(technology: &'static dyn Technology) {
    let control_plane = start(technology).await;
    let (changed, member) = (
        JoiningNode::boot(technology).unwrap(),
        JoiningNode::boot(technology).unwrap(),
    );
    changed.machine().change_image().unwrap();
    let foreign = Membership::new(ClusterId::new([1; 32]), NodeRole::Worker);
    member.attester().measure_membership(&foreign).unwrap();
    for node in [changed, member] {
        let result = control_plane.session(&node, Purpose::Join).await;
        assert!(matches!(result, Err(HandshakeError::RefusedByPeer(_))));
    }
    until_logged(&control_plane, "contraindicated").await;
}

/// Whoever may write the ConfigMap while the service runs, and other ConfigMaps too.
async fn an_edited_configuration_changes_neither_who_is_admitted_nor_what_is_installed(
    technology: &'static dyn Technology,
) {
    let control_plane = start(technology).await;
    let worker = JoiningNode::boot(technology).unwrap();
    let join = async || control_plane.join(&worker, request("worker-0")).await;
    let signed = control_plane.config().policy();
    assert_eq!(join().await.unwrap().ticket.cluster_policy, signed.as_bytes());

    // A policy that somebody else signed: the operator's stays in force.
    let other = JoinConfigExample {
        operator_seed: [9; 32],
        serial: 9,
        ..control_plane.config().clone()
    };
    control_plane
        .edit_config("clusterPolicy", other.policy().as_bytes())
        .unwrap();
    until_logged(&control_plane, "is signed by operator").await;
    assert_eq!(join().await.unwrap().ticket.cluster_policy, signed.as_bytes());
    control_plane.edit_config("clusterPolicy", signed.as_bytes()).unwrap();

    // Components that the policy does not list, though they are in the cluster.
    let admin = control_plane.cluster().admin().unwrap();
    let trojan = Component {
        url: "bin/kubelet".parse().unwrap(),
        hash: Digest::of(b"trojan"),
        install_path: "/run/state/bin/kubelet".parse().unwrap(),
        extract: false,
    };
    let unsigned = ComponentList::new("v1.35.3".parse().unwrap(), vec![trojan]).unwrap();
    let object = Object::new(components_config_map(&unsigned));
    object.apply(&admin).await.unwrap();
    let name = unsigned.config_map_name();
    control_plane.edit_config("components", name.as_bytes()).unwrap();
    until_logged(&control_plane, "join configuration reloaded").await;
    check_refused(join().await, Code::Unavailable, "the ticket cannot be issued now");
    until_logged(&control_plane, "does not list Kubernetes v1.35.3").await;
    let name = control_plane.config().components.config_map_name();
    control_plane.edit_config("components", name.as_bytes()).unwrap();
    until_admitted(&control_plane, &worker).await;

    // The salt of another cluster's id.
    control_plane.edit_config("measurementSalt", &[8; 32]).unwrap();
    until_logged(&control_plane, "measurementSalt of the join configuration is refused").await;
    assert_eq!(join().await.unwrap().ticket.cluster_policy, signed.as_bytes());
}

/// What was appraised once may not be accepted any more.
#[tokio::test]
async fn a_session_ends_after_its_limit() {
    let program = Path::new(env!("CARGO_BIN_EXE_join-service"));
    let arguments = ["--session-limit", "2"];
    let control_plane = ControlPlane::start_with(program.parent().unwrap(), SOFTWARE_TPM, &arguments).await;
    let control_plane = control_plane.unwrap();
    let worker = JoiningNode::boot(SOFTWARE_TPM).unwrap();
    let session = control_plane.session(&worker, Purpose::Join).await.unwrap();
    let mut client = ApiClient::new(session.channel);
    let mut is_open = async || {
        let answer = client.issue_join_ticket(request("../n")).await;
        answer.unwrap_err().code() == Code::InvalidArgument
    };
    assert!(is_open().await);
    let ended = async {
        while is_open().await {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    worker.machine().change_image().unwrap();
    let refused = control_plane.session(&worker, Purpose::Join).await;
    assert!(matches!(refused, Err(HandshakeError::RefusedByPeer(_))));
}

/// A session is good for one decision of the key service.
#[tokio::test]
async fn a_second_ticket_needs_another_session() {
    let control_plane = start(SOFTWARE_TPM).await;
    let worker = JoiningNode::boot(SOFTWARE_TPM).unwrap();
    let session = control_plane.session(&worker, Purpose::Join).await.unwrap();
    let mut client = ApiClient::new(session.channel);
    client.issue_join_ticket(request("worker-0")).await.unwrap();
    let refused = client.issue_join_ticket(request("worker-0")).await;
    check_refused(refused, Code::FailedPrecondition, "this session has had its decision");
}

/// Whoever has a bootstrap token asks for another node's certificate too.
#[tokio::test]
async fn kubelets_get_client_certificates_in_their_own_names_only() {
    let control_plane = start(SOFTWARE_TPM).await;
    let cluster = control_plane.cluster();
    let admin = cluster.admin().unwrap();
    // What kubeadm does.
    let binding = serde_json::from_value::<ClusterRoleBinding>(json!({
        "metadata": {"name": "kubeadm:kubelet-bootstrap"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:bootstrappers"},
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"},
        ],
    }));
    Object::new(binding.unwrap()).apply(&admin).await.unwrap();
    let group = joining_node_group(&"worker-0".parse().unwrap());
    let stranger = joining_node_group(&"worker-9".parse().unwrap());
    let worker = JoiningNode::boot(SOFTWARE_TPM).unwrap();
    control_plane.join(&worker, request("worker-0")).await.unwrap();
    // A name that was left to the machine, whose own record says another one: it would be its second.
    let second = json!({
        "metadata": {"name": "node-worker-5"},
        "data": {"attestedIdentity": worker.attester().identity().to_string()},
    });
    let records = Api::<ConfigMap>::namespaced(admin.clone(), "constellation-nodes");
    let second = serde_json::from_value(second).unwrap();
    records.create(&PostParams::default(), &second).await.unwrap();
    let of_second = joining_node_group(&"worker-5".parse().unwrap());
    let joining = ("system:bootstrap:abcdef", vec!["system:bootstrappers", &group]);
    let member = ("system:node:worker-0", vec!["system:nodes"]);
    for (number, ((user, groups), node, expected)) in [
        (joining.clone(), "worker-0", "Approved: for node worker-0"),
        (
            joining.clone(),
            "worker-1",
            "Denied: the bootstrap token is not for node worker-1",
        ),
        (joining.clone(), "worker-0", "Denied: the bootstrap token has been used"),
        // Nobody has that name, or not any more.
        (
            ("system:bootstrap:abcdef", vec!["system:bootstrappers", &stranger]),
            "worker-9",
            "Denied: no machine has the node name worker-9",
        ),
        (
            ("system:bootstrap:ghijkl", vec!["system:bootstrappers", &of_second]),
            "worker-5",
            "Denied: no machine has the node name worker-5",
        ),
        (
            ("system:node:worker-5", vec!["system:nodes"]),
            "worker-5",
            "Denied: no machine has the node name worker-5",
        ),
        // A member that asks in another name is refused by the API server itself.
        (member, "worker-0", "Approved: for node worker-0"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("request-{number}");
        let request = json!({
            "metadata": {"name": name},
            "spec": {
                "request": BASE64_STANDARD.encode(client_certificate_request(node).unwrap()),
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
                "usages": ["digital signature", "client auth"],
            },
        });
        let client = cluster.impersonate(user, &groups).unwrap();
        let requests = Api::<CertificateSigningRequest>::all(client);
        let request = serde_json::from_value(request).unwrap();
        // The binding takes effect a moment later.
        let parameters = PostParams::default();
        let create = || requests.create(&parameters, &request);
        let created = Schedule::every(Duration::from_millis(100), Duration::from_secs(60));
        let created = created
            .poll(async || create().await.map_err(Failed::Retry), |_, _| {})
            .await;
        created.unwrap();
        let all = Api::all(admin.clone());
        let decided = decision_on(&all, &name);
        let decided = tokio::time::timeout(Duration::from_secs(60), decided).await.unwrap();
        assert_eq!(decided, expected, "{}", control_plane.logs());
    }
}

/// The operator has removed the machine.
#[tokio::test]
async fn a_released_name_and_address_can_be_another_machines() {
    let control_plane = start(SOFTWARE_TPM).await;
    let (old, new) = (
        JoiningNode::boot(SOFTWARE_TPM).unwrap(),
        JoiningNode::boot(SOFTWARE_TPM).unwrap(),
    );
    control_plane.join(&old, request("worker-0")).await.unwrap();
    assert!(control_plane.join(&new, request("worker-0")).await.is_err());
    let cluster = Cluster::new(control_plane.cluster().admin().unwrap());
    let worker: NodeName = "worker-0".parse().unwrap();
    let owner = old.attester().identity().to_string();
    assert_eq!(
        cluster.owners().await.unwrap(),
        BTreeMap::from([(worker.to_string(), owner)])
    );
    // Again, as after an interruption.
    for _ in 0..2 {
        cluster.release(&worker).await.unwrap();
    }
    assert!(cluster.owners().await.unwrap().is_empty());
    control_plane.join(&new, request("worker-0")).await.unwrap();
    // The former member finds its name taken, and gets another one only with another address.
    assert!(control_plane.join(&old, request("worker-0")).await.is_err());
}

/// Whoever writes the records does not choose what else is deleted with a name.
#[tokio::test]
async fn a_record_leads_to_nothing_but_records() {
    let control_plane = start(SOFTWARE_TPM).await;
    let admin = control_plane.cluster().admin().unwrap();
    let records = Api::<ConfigMap>::namespaced(admin.clone(), "constellation-nodes");
    let secret = json!({ "metadata": { "name": "kept" } });
    let secrets = Api::<Secret>::namespaced(admin.clone(), "kube-system");
    let secret = serde_json::from_value(secret).unwrap();
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    let elsewhere = "x/../../../kube-system/secrets/kept";
    let (machine, other) = ("01".repeat(32), "02".repeat(32));
    for (name, data) in [
        // A name that was given to the machine of another node.
        ("node-worker-3".to_owned(), json!({ "attestedIdentity": other })),
        (
            format!("machine-{other}"),
            json!({ "name": "worker-4", "address": "10.42.2.104" }),
        ),
        ("node-worker-4".to_owned(), json!({ "attestedIdentity": other })),
        ("address-10.42.2.104".to_owned(), json!({ "attestedIdentity": other })),
        ("node-worker-1".to_owned(), json!({ "attestedIdentity": elsewhere })),
        ("node-worker-2".to_owned(), json!({ "attestedIdentity": machine })),
        (
            format!("machine-{machine}"),
            json!({ "name": "worker-2", "address": elsewhere }),
        ),
    ] {
        let record = json!({ "metadata": { "name": name }, "data": data });
        let record = serde_json::from_value(record).unwrap();
        records.create(&PostParams::default(), &record).await.unwrap();
    }
    let cluster = Cluster::new(admin);
    for name in ["worker-1", "worker-2", "worker-3"] {
        cluster.release(&name.parse().unwrap()).await.unwrap();
    }
    secrets.get("kept").await.unwrap();
    let left = records.list(&ListParams::default()).await.unwrap();
    let left: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
    let of_other = format!("machine-{other}");
    assert_eq!(left, ["address-10.42.2.104", &of_other, "node-worker-4"]);
}

/// Whoever edits the records decides where a kubelet serves, and where they do not fit each other, it serves nowhere.
#[tokio::test]
async fn kubelets_serve_where_all_records_say() {
    let control_plane = start(SOFTWARE_TPM).await;
    let admin = control_plane.cluster().admin().unwrap();
    let worker = JoiningNode::boot(SOFTWARE_TPM).unwrap();
    control_plane.join(&worker, request("worker-0")).await.unwrap();
    let own = [10, 42, 2, b'0'];
    let machine = worker.attester().identity().to_string();
    let denied = "Denied: no machine has the node name worker-0 and an address";
    let serving = async |address, name: &str| {
        let pem = serving_certificate_request("worker-0", address).unwrap();
        let request = json!({
            "metadata": {"name": name},
            "spec": {
                "request": BASE64_STANDARD.encode(pem),
                "signerName": "kubernetes.io/kubelet-serving",
                "usages": ["digital signature", "server auth"],
            },
        });
        let user = ("system:node:worker-0", ["system:nodes", "system:masters"]);
        let requests =
            Api::<CertificateSigningRequest>::all(control_plane.cluster().impersonate(user.0, &user.1).unwrap());
        let request = serde_json::from_value(request).unwrap();
        requests.create(&PostParams::default(), &request).await.unwrap();
        let all = Api::all(admin.clone());
        let decided = decision_on(&all, name);
        tokio::time::timeout(Duration::from_secs(60), decided).await.unwrap()
    };
    assert_eq!(serving(own, "own").await, "Approved: for node worker-0");
    let elsewhere = serving([10, 42, 2, 99], "elsewhere").await;
    assert!(elsewhere.starts_with("Denied: the request is refused"), "{elsewhere}");

    let records = Api::<ConfigMap>::namespaced(admin.clone(), "constellation-nodes");
    let put = async |name: &str, data: Value| {
        let _ = records.delete(name, &DeleteParams::default()).await.unwrap();
        let object = serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
        records.create(&PostParams::default(), &object).await.unwrap();
    };
    let (address, of_machine) = ("address-10.42.2.48", format!("machine-{machine}"));
    put(address, json!({"attestedIdentity": "another"})).await;
    assert_eq!(serving(own, "address-of-another").await, denied);
    put(address, json!({"attestedIdentity": machine})).await;
    put(&of_machine, json!({"name": "worker-1", "address": "10.42.2.48"})).await;
    assert_eq!(serving(own, "another-name").await, denied);
    put(&of_machine, json!({"name": "worker-0", "address": "nowhere"})).await;
    assert_eq!(serving(own, "no-address").await, denied);
    put(&of_machine, json!({"name": "worker-0", "address": "10.42.2.48"})).await;
    put("node-worker-0", json!({"attestedIdentity": "another"})).await;
    assert_eq!(serving(own, "name-of-another").await, denied);
    put("node-worker-0", json!({"attestedIdentity": machine})).await;
    assert_eq!(serving(own, "again").await, "Approved: for node worker-0");
}

/// Waits until there is one.
async fn decision_on(requests: &Api<CertificateSigningRequest>, name: &str) -> String {
    loop {
        let status = requests.get(name).await.unwrap().status.unwrap_or_default();
        if let Some([condition]) = status.conditions.as_deref() {
            return format!(
                "{}: {}",
                condition.type_,
                condition.message.as_deref().unwrap_or_default()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
