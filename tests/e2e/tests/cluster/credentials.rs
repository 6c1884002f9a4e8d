//! What somebody achieves with credentials that Kubernetes gives out: those of a joining node, and those of the pod network.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use e2e::{Cluster, Image};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_services::{client_certificate_request, join_request, serving_certificate_request};

use crate::attacks::{ROGUE_ADDRESS, ROGUE_NAME, blocking, in_the_log, join_service};
use crate::rogue::{self, Ours};
use crate::workload::WORKER;

/// A machine that is let in asks the API server for the certificate of another node, and for a second one of its own.
pub(crate) fn a_bootstrap_token_is_good_for_one_certificate(cluster: &Cluster, image: &Image) -> Result<()> {
    let service = join_service(cluster)?;
    let node = rogue::careless(rogue::forged(&Ours::new(cluster, image)?));
    let ticket = blocking(rogue::join(&node, &service, join_request(ROGUE_NAME, ROGUE_ADDRESS)))?;
    let token = cluster.kubeconfig_with(&ticket?.token)?;
    let request = |name: &str, node: &str| -> Result<()> {
        let pem = client_certificate_request(node)?;
        let signer = "kubernetes.io/kube-apiserver-client-kubelet";
        cluster.create_as(&token, &signing_request(name, &pem, signer, "client auth"))
    };
    in_the_log(
        cluster,
        "join-service",
        &["kubelet certificate denied", "the bootstrap token is not for node"],
        async { request("anothers", WORKER) },
    )?;
    request("own", ROGUE_NAME)?;
    cluster.wait_until("a certificate in its own name", || {
        Ok(decision(cluster, "own")?.starts_with("Approved: for node"))
    })?;
    let denied = decision(cluster, "anothers")?;
    ensure!(
        denied.starts_with("Denied: the bootstrap token is not for node"),
        "{denied}"
    );
    let used = ["kubelet certificate denied", "the bootstrap token has been used"];
    in_the_log(cluster, "join-service", &used, async { request("again", ROGUE_NAME) })?;
    let denied = decision(cluster, "again")?;
    ensure!(
        denied.starts_with("Denied: the bootstrap token has been used"),
        "{denied}"
    );
    Ok(())
}

/// Whoever may write it would lead every joining node to an API server of their own, with a CA of their own.
pub(crate) fn kubeadm_follows_no_edited_cluster_info(cluster: &Cluster, _: &Image) -> Result<()> {
    let view = ["config", "view", "--raw", "--minify", "--output", "json"];
    let admin: Value = serde_json::from_str(&cluster.kubectl(view)?)?;
    let known = &admin["clusters"][0]["cluster"];
    let elsewhere = TcpListener::bind("127.0.0.1:0")?;
    elsewhere.set_nonblocking(true)?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = ca.self_signed(&KeyPair::generate()?)?.pem();
    let foreign = json!({
        "server": format!("https://{}", elsewhere.local_addr()?),
        "certificate-authority-data": BASE64_STANDARD.encode(ca),
    });
    let shown = cluster.kubectl([
        "-n",
        "kube-public",
        "get",
        "configmap",
        "cluster-info",
        "--output",
        "json",
    ])?;
    let original: Value = serde_json::from_str(&shown)?;
    let edited = json!({ "data": { "kubeconfig": only_cluster(&foreign).to_string() } });
    patch_cluster_info(cluster, &edited)?;
    let joined = preflight(cluster, known);
    patch_cluster_info(cluster, &json!({ "data": original["data"] }))?;
    let said = joined?;
    ensure!(
        said.contains("Reading configuration from the \"kubeadm-config\" ConfigMap"),
        "{said}"
    );
    ensure!(
        elsewhere.accept().is_err(),
        "kubeadm went where cluster-info leads: {said}"
    );
    Ok(())
}

fn patch_cluster_info(cluster: &Cluster, patch: &Value) -> Result<()> {
    let patch = patch.to_string();
    let arguments = [
        "-n",
        "kube-public",
        "patch",
        "configmap",
        "cluster-info",
        "--type=merge",
        "--patch",
        &patch,
    ];
    cluster.kubectl(arguments).map(drop)
}

fn only_cluster(known: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Config", "clusters": [{ "name": "", "cluster": known }] })
}

/// Everything that kubeadm does with the API server before the kubelet starts, on this machine and as a node's bootstrapper lets it.
fn preflight(cluster: &Cluster, known: &Value) -> Result<String> {
    let (id, secret) = ("e2etok", "0123456789abcdef");
    cluster.create(&json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": format!("bootstrap-token-{id}"), "namespace": "kube-system" },
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": id,
            "token-secret": secret,
            "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        },
    }))?;
    let folder = TempDir::new()?;
    let (discovery, config) = (folder.path().join("discovery.json"), folder.path().join("join.json"));
    fs::write(&discovery, only_cluster(known).to_string())?;
    let join = json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "JoinConfiguration",
        "discovery": { "file": { "kubeConfigPath": discovery }, "tlsBootstrapToken": format!("{id}.{secret}") },
        "nodeRegistration": { "name": ROGUE_NAME, "criSocket": "unix:///run/containerd/containerd.sock" },
    });
    fs::write(&config, join.to_string())?;
    let output = Command::new(cluster.mirror().folder().join("bin/kubeadm"))
        .args([
            "join",
            "phase",
            "preflight",
            "--ignore-preflight-errors=all",
            "--config",
        ])
        .arg(&config)
        .stdin(Stdio::null())
        .output()?;
    let said = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    ensure!(output.status.success(), "kubeadm failed: {said}");
    Ok(said)
}

/// Each kubelet serves with a certificate that the join service approved; without one, the API server would get no log of a pod. Root on the
/// worker asks in its kubelet's name to serve at the API server's address, at that of its Service, and at nobody's.
pub(crate) fn a_kubelet_serves_at_its_nodes_address_alone(cluster: &Cluster, _: &Image) -> Result<()> {
    for node in ["control-plane-0", WORKER] {
        cluster.wait_until("a serving certificate", || {
            let output = "jsonpath={range .items[*]}{.spec.signerName} {.spec.username} {.status.conditions[*].type}{\"\\n\"}{end}";
            let requests = cluster.kubectl(["get", "certificatesigningrequests", "--output", output])?;
            let own = format!("{SERVING} system:node:{node} Approved");
            Ok(requests.lines().any(|line| line == own))
        })?;
    }
    for (name, address) in [
        ("as-api-server", [10, 42, 1, 100]),
        ("as-service", [10, 96, 0, 1]),
        ("as-nobody", ROGUE_ADDRESS),
    ] {
        let refused = ["kubelet certificate denied", "by its node's name, and nowhere else"];
        in_the_log(cluster, "join-service", &refused, async {
            let pem = serving_certificate_request(WORKER, address)?;
            cluster.create_as_kubelet(WORKER, &signing_request(name, &pem, SERVING, "server auth"))
        })?;
        let denied = decision(cluster, name)?;
        ensure!(denied.starts_with("Denied: the request is refused"), "{denied}");
    }
    Ok(())
}

const SERVING: &str = "kubernetes.io/kubelet-serving";

fn signing_request(name: &str, pem: &str, signer: &str, usage: &str) -> Value {
    json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": BASE64_STANDARD.encode(pem),
            "signerName": signer,
            "usages": ["digital signature", usage],
        },
    })
}

fn decision(cluster: &Cluster, request: &str) -> Result<String> {
    let output = "jsonpath={.status.conditions[*].type}: {.status.conditions[*].message}";
    cluster.kubectl(["get", "certificatesigningrequests", request, "--output", output])
}

/// The pod network's token is on every node. Root on the worker changes its own annotations with it, and nothing else.
pub(crate) fn the_pod_networks_token_changes_only_its_own_node(cluster: &Cluster, _: &Image) -> Result<()> {
    let namespace = ["--namespace", "kube-system"];
    let pod = [
        "get",
        "pods",
        "--selector",
        "k8s-app=flannel",
        "--output",
        "name",
        "--field-selector",
    ];
    let pod = cluster.kubectl([&pod[..], &[&format!("spec.nodeName={WORKER}")], &namespace].concat())?;
    let pod = pod.trim().strip_prefix("pod/").context("no pod of the pod network")?;
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod];
    let token = cluster.kubectl([&["create", "token", "flannel"][..], &bound, &namespace].concat())?;
    let kubeconfig = cluster.kubeconfig_with(token.trim())?;
    blocking(async {
        let config = Kubeconfig::read_from(kubeconfig.path())?;
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let nodes = Api::<Node>::all(Client::try_from(config)?);
        let patch = async |node: &str, metadata: Value| {
            let patch = Patch::Strategic(json!({"metadata": metadata}));
            nodes.patch_status(node, &PatchParams::default(), &patch).await
        };
        let key = json!({"annotations": {"flannel.alpha.coreos.com/test": "own"}});
        patch(WORKER, key.clone()).await.context("its own annotation")?;
        // The API server gives the reason of one policy, and which of two comes first differs from start to start.
        let of_a_role = &[
            "only the operator's administrators change the role of a Node",
            "the pod network changes no labels",
        ][..];
        let of_another_node = &["the pod network changes only the Node that its token is bound to"];
        for (node, metadata, reasons) in [
            (
                WORKER,
                json!({"labels": {"node-role.kubernetes.io/control-plane": ""}}),
                of_a_role,
            ),
            ("control-plane-0", key, of_another_node),
        ] {
            let Err(error) = patch(node, metadata).await.map(drop) else {
                bail!("the pod network's token changed {node}")
            };
            let refusal = error.to_string();
            ensure!(
                reasons.iter().any(|reason| refusal.contains(reason)),
                "{node}: {refusal}"
            );
        }
        Ok(())
    })
}
