//! What a real API server with our settings and rules refuses, and why.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use cluster_types::Service::Join;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Error};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use test_cluster::TestCluster;

use self::support::network;

const OWN: &str = "worker-0";
const OTHER: &str = "worker-1";

fn from<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}

/// A cluster with two Nodes, the pod network's account, and our rules.
async fn cluster() -> TestCluster {
    let cluster = TestCluster::start().await.unwrap();
    let admin = cluster.admin().unwrap();
    for object in deployment::objects(&network()) {
        object.apply(&admin).await.unwrap();
    }
    let nodes: Api<Node> = Api::all(admin.clone());
    for name in [OWN, OTHER] {
        let node = from(json!({
            "metadata": { "name": name, "annotations": { "other": "1" }, "labels": { "other": "1" } },
        }));
        nodes.create(&PostParams::default(), &node).await.unwrap();
    }
    cluster
        .wait_until_allowed("flannel", "patch", "", "nodes/status")
        .await
        .unwrap();
    until_in_force(&cluster).await;
    cluster
}

/// The API server takes a moment until it knows a rule, and the priority classes.
async fn until_in_force(cluster: &TestCluster) {
    let unbound = cluster.service_account("flannel").await.unwrap();
    let touch = json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/probe": "1" } } });
    let pods = pods_in(cluster, "default").await;
    let critical = pod(json!({ "priorityClassName": "system-node-critical" }));
    let in_force = async {
        while !is_denied(&patch(&unbound, OWN, &touch).await)
            || !is_denied(&pods.create(&PostParams::default(), &critical).await)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), in_force).await.unwrap();
    must_be_refused(patch(&unbound, OWN, &touch).await, "its token is bound to");
}

/// The pod network as it runs on a node: its token is bound to its pod, which is bound to the Node.
async fn flannel_on(cluster: &TestCluster, node: &str) -> Client {
    let admin = cluster.admin().unwrap();
    let pods: Api<Pod> = Api::namespaced(admin.clone(), "kube-system");
    let pod = from(json!({
        "metadata": { "name": format!("flannel-{node}") },
        "spec": { "serviceAccountName": "flannel", "nodeName": node, "containers": [{ "name": "c", "image": "i" }] },
    }));
    let pod = pods.create(&PostParams::default(), &pod).await.unwrap();
    let request = TokenRequest {
        spec: TokenRequestSpec {
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name,
                uid: pod.metadata.uid,
            }),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(admin, "kube-system");
    let response = accounts
        .create_token_request("flannel", &PostParams::default(), &request)
        .await;
    cluster.bearer(response.unwrap().status.unwrap().token).unwrap()
}

async fn patch(client: &Client, node: &str, change: &Value) -> Result<(), Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let patched = nodes
        .patch_status(node, &PatchParams::default(), &Patch::Strategic(change))
        .await;
    patched.map(drop)
}

/// By one of our rules.
fn is_denied<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::Api(status)) if status.message.contains("denied request"))
}

fn must_be_refused<T>(result: Result<T, Error>, reason: &str) {
    let Err(Error::Api(status)) = result.map(drop) else {
        panic!("not refused: {reason}")
    };
    assert_eq!(status.code, 403, "{status:?}");
    assert!(status.message.contains(reason), "{}", status.message);
}

#[tokio::test]
async fn the_pod_networks_token_changes_only_its_own_node_and_only_its_annotations() {
    let cluster = cluster().await;
    let flannel = flannel_on(&cluster, OWN).await;
    let own = json!({
        "metadata": { "annotations": { "flannel.alpha.coreos.com/public-ip": "10.42.2.100" } },
        "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "False", "reason": "FlannelIsUp" }] },
    });
    patch(&flannel, OWN, &own).await.unwrap();
    let removed = json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/public-ip": null } } });
    patch(&flannel, OWN, &removed).await.unwrap();

    let one_node = "the pod network changes only the Node that its token is bound to";
    must_be_refused(patch(&flannel, OTHER, &own).await, one_node);
    let unbound = cluster.service_account("flannel").await.unwrap();
    must_be_refused(patch(&unbound, OWN, &own).await, one_node);

    for change in [json!({ "a": "1" }), json!({ "other": "2" }), json!({ "other": null })] {
        let labels = json!({ "metadata": { "labels": change } });
        must_be_refused(patch(&flannel, OWN, &labels).await, "the pod network changes no labels");
        let annotations = json!({ "metadata": { "annotations": change } });
        must_be_refused(
            patch(&flannel, OWN, &annotations).await,
            "the pod network changes no annotations, finalizers or owners",
        );
    }
    let finalizers = json!({ "metadata": { "finalizers": ["example.com/never"] } });
    must_be_refused(
        patch(&flannel, OWN, &finalizers).await,
        "the pod network changes no annotations, finalizers or owners",
    );
}

/// A former member whose certificate is still good registers anew, with the addresses of another node's pods.
#[tokio::test]
async fn a_kubelet_takes_no_other_nodes_addresses() {
    let cluster = cluster().await;
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.admin().unwrap());
    let binding = from(json!({
        "metadata": { "name": "kubelets" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes" }],
    }));
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    let kubelet = cluster.impersonate("system:node:worker-9", &["system:nodes", "system:authenticated"]);
    let kubelet = kubelet.unwrap();
    let nodes: Api<Node> = Api::all(kubelet.clone());
    let node = |annotations: Value, spec: Value| {
        from::<Node>(json!({ "metadata": { "name": "worker-9", "annotations": annotations }, "spec": spec }))
    };
    let create = async |node: Node| nodes.create(&PostParams::default(), &node).await;
    let addresses = json!({ "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] });
    // RBAC takes a moment.
    let known = async {
        while !is_denied(&create(node(json!({}), addresses.clone())).await) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), known).await.unwrap();

    let no_addresses = "a kubelet does not choose the addresses of its pods";
    must_be_refused(create(node(json!({}), addresses.clone())).await, no_addresses);
    let flannel = json!({ "flannel.alpha.coreos.com/backend-data": "{}" });
    must_be_refused(
        create(node(flannel, json!({}))).await,
        "a kubelet does not speak for the pod network",
    );
    create(node(json!({}), json!({}))).await.unwrap();
    let params = PatchParams::default();
    let later = json!({ "spec": addresses });
    must_be_refused(
        nodes.patch("worker-9", &params, &Patch::Strategic(&later)).await,
        no_addresses,
    );
    let harmless = json!({ "metadata": { "annotations": { "a": "1" } } });
    nodes
        .patch("worker-9", &params, &Patch::Strategic(&harmless))
        .await
        .unwrap();
}

/// Also to whoever may do everything, unless it is the operator's administrator.
#[tokio::test]
async fn roles_of_nodes_are_the_administrators_to_change() {
    let cluster = cluster().await;
    let admin = cluster.admin().unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(admin.clone());
    let binding = from(json!({
        "metadata": { "name": "everything" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" },
        "subjects": [{ "kind": "ServiceAccount", "name": "powerful", "namespace": "kube-system" }],
    }));
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    let powerful = cluster.service_account("powerful").await.unwrap();
    cluster
        .wait_until_allowed("powerful", "create", "", "nodes")
        .await
        .unwrap();

    let role = json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "" } } });
    let refusal = "only the operator's administrators change the role of a Node";
    let nodes: Api<Node> = Api::all(powerful.clone());
    let params = PatchParams::default();
    must_be_refused(patch(&powerful, OWN, &role).await, refusal);
    must_be_refused(nodes.patch(OWN, &params, &Patch::Strategic(&role)).await, refusal);
    let new = from(json!({
        "metadata": { "name": "new", "labels": { "node-role.kubernetes.io/control-plane": "" } },
    }));
    must_be_refused(nodes.create(&PostParams::default(), &new).await, refusal);
    let plain = from(json!({ "metadata": { "name": "new" } }));
    nodes.create(&PostParams::default(), &plain).await.unwrap();
    let harmless = json!({ "metadata": { "labels": { "zone": "1" } } });
    nodes.patch(OWN, &params, &Patch::Strategic(&harmless)).await.unwrap();

    let admins: Api<Node> = Api::all(admin);
    admins.patch(OWN, &params, &Patch::Strategic(&role)).await.unwrap();
    let removed = json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": null } } });
    must_be_refused(nodes.patch(OWN, &params, &Patch::Strategic(&removed)).await, refusal);
}

#[tokio::test]
async fn pods_that_reach_the_host_are_refused_outside_kubernetes_own_namespace() {
    let cluster = TestCluster::start().await.unwrap();
    let pods = pods_in(&cluster, "default").await;
    for change in [
        json!({ "hostNetwork": true }),
        json!({ "hostPID": true }),
        json!({ "hostIPC": true }),
        json!({ "volumes": [{ "name": "v", "hostPath": { "path": "/run/state" } }] }),
        json!({ "containers": [{ "name": "c", "image": "i", "securityContext": { "privileged": true } }] }),
        json!({ "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 1, "hostPort": 1 }] }] }),
    ] {
        let created = pods.create(&PostParams::default(), &pod(change)).await;
        must_be_refused(created, "violates PodSecurity \"baseline:latest\"");
    }
    pods.create(&PostParams::default(), &pod(json!({}))).await.unwrap();
}

/// The kubelet would not evict it, however much of the disk it takes.
#[tokio::test]
async fn pods_are_kubernetes_own_only_where_they_may_be_root() {
    let cluster = cluster().await;
    let namespaces: Api<Namespace> = Api::all(cluster.admin().unwrap());
    for (name, level) in [("baseline", "baseline"), ("privileged", "privileged")] {
        let labels = json!({ "pod-security.kubernetes.io/enforce": level });
        let namespace = from(json!({ "metadata": { "name": name, "labels": labels } }));
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    }
    let create = async |namespace: &str, class: &str| {
        let pods = pods_in(&cluster, namespace).await;
        let pod = pod(json!({ "priorityClassName": class }));
        pods.create(&PostParams::default(), &pod).await
    };
    for class in ["system-node-critical", "system-cluster-critical"] {
        for namespace in ["default", "baseline"] {
            must_be_refused(
                create(namespace, class).await,
                "the system-* priority classes are for pods of kube-system",
            );
        }
        for namespace in ["kube-system", "privileged"] {
            create(namespace, class).await.unwrap();
        }
    }
    let pods = pods_in(&cluster, "default").await;
    pods.create(&PostParams::default(), &pod(json!({}))).await.unwrap();
}

/// In a namespace where pods can be created without a controller manager, which makes the account.
async fn pods_in(cluster: &TestCluster, namespace: &str) -> Api<Pod> {
    let admin = cluster.admin().unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), namespace);
    if accounts.get_opt("default").await.unwrap().is_none() {
        let account = from(json!({ "metadata": { "name": "default" } }));
        accounts.create(&PostParams::default(), &account).await.unwrap();
    }
    Api::namespaced(admin, namespace)
}

fn pod(change: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "generateName": "pod-" },
        "spec": { "containers": [{ "name": "c", "image": "i" }] },
    });
    for (field, value) in change.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    from(pod)
}

/// It could take the address of the API server on every node.
#[tokio::test]
async fn a_service_with_external_addresses_is_refused() {
    let cluster = TestCluster::start().await.unwrap();
    let services: Api<Service> = Api::namespaced(cluster.admin().unwrap(), "default");
    let service = from(json!({
        "metadata": { "name": "taker" },
        "spec": { "ports": [{ "port": 6443 }], "externalIPs": ["10.42.1.100"] },
    }));
    let created = services.create(&PostParams::default(), &service).await;
    must_be_refused(created, "Use of external IPs is denied by admission control");
}

/// A certificate that an administrator requests, approved or denied by whoever has this client.
async fn decide_on_certificate(
    cluster: &TestCluster,
    client: &Client,
    name: &str,
    signer: &str,
    decision: &str,
) -> Result<(), Error> {
    let key = KeyPair::generate().unwrap();
    let pem = CertificateParams::default().serialize_request(&key).unwrap().pem();
    let request = from(json!({
        "metadata": { "name": name },
        "spec": {
            "request": BASE64_STANDARD.encode(pem.unwrap()),
            "signerName": format!("kubernetes.io/{signer}"),
            "usages": ["client auth"],
        },
    }));
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.admin().unwrap());
    requests.create(&PostParams::default(), &request).await.unwrap();
    let condition = json!({ "type": decision, "status": "True", "reason": "Test", "message": "" });
    let patch = Patch::Merge(json!({ "status": { "conditions": [condition] } }));
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let patched = requests.patch_approval(name, &PatchParams::default(), &patch).await;
    patched.map(drop)
}

/// A cluster-admin makes a machine a Node that did not attest.
#[tokio::test]
async fn kubelets_certificates_are_the_join_services_to_approve() {
    const KUBELET: &str = "kube-apiserver-client-kubelet";
    let cluster = cluster().await;
    let admin = cluster.admin().unwrap();
    for object in [deployment::namespace()].into_iter().chain(deployment::rights(Join)) {
        object.apply(&admin).await.unwrap();
    }
    let resource = "certificatesigningrequests";
    let allowed = cluster.wait_until_allowed("join-service", "list", "certificates.k8s.io", resource);
    allowed.await.unwrap();

    // The API server takes a moment until it knows the rule.
    let in_force = async {
        for attempt in 0.. {
            let name = format!("before-{attempt}");
            if is_denied(&decide_on_certificate(&cluster, &admin, &name, KUBELET, "Approved").await) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), in_force).await.unwrap();
    let only = "only the join service approves kubelets' certificates";
    for signer in [KUBELET, "kubelet-serving"] {
        let name = format!("by-hand-{signer}");
        must_be_refused(
            decide_on_certificate(&cluster, &admin, &name, signer, "Approved").await,
            only,
        );
    }
    decide_on_certificate(&cluster, &admin, "denied", KUBELET, "Denied")
        .await
        .unwrap();
    let other = decide_on_certificate(&cluster, &admin, "other", "kube-apiserver-client", "Approved");
    other.await.unwrap();
    let join_service = cluster.service_account("join-service").await.unwrap();
    let approved = decide_on_certificate(&cluster, &join_service, "joining", KUBELET, "Approved");
    approved.await.unwrap();
}
