//! What a cluster-admin achieves with another policy in the ConfigMap.

use anyhow::{Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use cluster_policy::{BelievedPolicy, ClusterPolicy};
use e2e::{Cluster, Image};
use operator_key::OperatorKey;
use serde_json::json;

use crate::attacks::{in_the_log, join_service};
use crate::rogue::{self, Ours};

/// Neither a policy that somebody else signed nor an earlier one of the operator is in force, and the log says why.
pub(crate) fn an_edited_policy_admits_nobody(cluster: &Cluster, image: &Image) -> Result<()> {
    let (operator, service) = (OperatorKey::of(&cluster.master_secret()?), join_service(cluster)?);
    let first = rogue::operators_policy(cluster)?;

    let other_image = image.with_command_line("sysctl.kernel.sysrq=0", "sysctl.kernel.sysrq=1")?;
    let mut open = ClusterPolicy {
        serial: first.serial + 8,
        ..(*first).clone()
    };
    open.images.push(other_image.values().clone());
    let foreign = BelievedPolicy::sign(&open, &OperatorKey::from_seed(&[9; 32]))?;
    serve(cluster, &foreign, "is signed by operator")?;
    ensure!(
        cluster.constellation(["policy", "show"]).is_err(),
        "another operator's policy counts as in force"
    );
    let node = Ours {
        image: other_image.values(),
        ..Ours::new(cluster, image)?
    };
    in_the_log(cluster, "join-service", &["handshake failed", "PCR 11 is"], async {
        rogue::must_be_refused(&rogue::careless(rogue::forged(&node)), &service).await
    })?;

    let next = ClusterPolicy {
        serial: first.serial + 1,
        ..(*first).clone()
    };
    let next = BelievedPolicy::sign(&next, &operator)?;
    serve(cluster, &next, "join configuration reloaded")?;
    let refusal = format!(
        "has serial {}, but serial {} has been in force",
        first.serial, next.serial
    );
    serve(cluster, &first, &refusal)?;
    put(cluster, &next)
}

/// Writes it, and waits until the join service has said this about it.
fn serve(cluster: &Cluster, policy: &BelievedPolicy, said: &str) -> Result<()> {
    in_the_log(cluster, "join-service", &[said], async { put(cluster, policy) })
}

fn put(cluster: &Cluster, policy: &BelievedPolicy) -> Result<()> {
    let patch = json!({"binaryData": {"clusterPolicy": BASE64_STANDARD.encode(policy.as_bytes())}}).to_string();
    let namespace = ["--namespace", "kube-system"];
    cluster.kubectl(
        [
            &namespace[..],
            &["patch", "configmap", "join-config", "--patch", &patch],
        ]
        .concat(),
    )?;
    // The kubelet looks after a pod at once when it changes, instead of once a minute.
    let serial = format!("policy={}", policy.serial);
    let pods = [
        "annotate",
        "pods",
        "--selector",
        "k8s-app=join-service",
        "--overwrite",
        &serial,
    ];
    cluster.kubectl([&namespace[..], &pods].concat())?;
    Ok(())
}
