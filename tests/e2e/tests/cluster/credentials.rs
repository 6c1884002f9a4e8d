//! What somebody achieves with credentials that Kubernetes gives out: those of a joining node, and those of the pod network.

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use e2e::{Cluster, Image};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use test_services::{client_certificate_request, join_request};

use crate::attacks::{ROGUE_ADDRESS, ROGUE_NAME, WORKER, blocking, in_the_log, join_service};
use crate::rogue::{self, Ours};

/// A machine that is let in asks the API server for the certificate of another node.
pub(crate) fn a_bootstrap_token_is_good_for_one_node_name(cluster: &Cluster, image: &Image) -> Result<()> {
    let service = join_service(cluster)?;
    let node = rogue::careless(rogue::forged(&Ours::new(cluster, image)?));
    let ticket = blocking(rogue::join(&node, &service, join_request(ROGUE_NAME, ROGUE_ADDRESS)?))?;
    let token = cluster.kubeconfig_with(&ticket?.token)?;
    let request = |name: &str, node: &str| -> Result<()> {
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": {
                "request": BASE64_STANDARD.encode(client_certificate_request(node)?),
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
                "usages": ["digital signature", "client auth"],
            },
        });
        cluster.create_as(&token, &object)
    };
    let decision = |name: &str| {
        let output = "jsonpath={.status.conditions[*].type}: {.status.conditions[*].message}";
        cluster.kubectl(["get", "certificatesigningrequests", name, "--output", output])
    };
    in_the_log(
        cluster,
        "join-service",
        &["kubelet certificate denied", "the bootstrap token is not for node"],
        async { request("anothers", WORKER) },
    )?;
    request("own", ROGUE_NAME)?;
    cluster.wait_until("a certificate in its own name", || {
        Ok(decision("own")?.starts_with("Approved: for node"))
    })?;
    let denied = decision("anothers")?;
    ensure!(
        denied.starts_with("Denied: the bootstrap token is not for node"),
        "{denied}"
    );
    Ok(())
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
