//! `policy show`: what a cluster serves as its policy, which whoever may write the ConfigMap chooses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::process::Output;
use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_STANDARD, Engine};
use cluster_config::Workspace;
use cluster_policy::{BelievedPolicy, ClusterPolicy};
use operator_key::OperatorKey;
use serde_json::{Value, json};
use support::api_server::{api_server, made};
use support::{Host, stderr, stdout};

/// A cluster that serves its operator's policy, until a test changes that.
struct Cluster {
    host: Host,
    served: Arc<Mutex<Vec<u8>>>,
}

impl Cluster {
    fn made() -> Self {
        let served = Arc::<Mutex<Vec<u8>>>::default();
        let answer = served.clone();
        let host = made(api_server("200 OK", move |_| {
            let policy = BASE64_STANDARD.encode(&*answer.lock().unwrap());
            let metadata = json!({"name": "join-config", "namespace": "kube-system"});
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "binaryData": {"clusterPolicy": policy}})
                .to_string()
        }));
        let cluster = Self { host, served };
        cluster.serve(cluster.policy().as_bytes());
        cluster
    }

    fn serve(&self, bytes: &[u8]) {
        *self.served.lock().unwrap() = bytes.to_vec();
    }

    fn workspace(&self) -> Workspace {
        Workspace::open(&self.host.workspace()).unwrap()
    }

    fn operator(&self) -> OperatorKey {
        OperatorKey::of(&self.workspace().master_secret().unwrap())
    }

    /// The policy that `mini up` signed.
    fn policy(&self) -> BelievedPolicy {
        let stored = self.workspace().state().unwrap().unwrap().policy.unwrap();
        stored.believe(|signer| *signer == self.operator().public()).unwrap()
    }

    fn show(&self, arguments: &[&str]) -> Output {
        self.host.run(&[&["policy", "show"], arguments].concat())
    }
}

#[test]
fn the_operators_policy_is_shown_with_its_signer() {
    let cluster = Cluster::made();
    let (policy, operator) = (cluster.policy(), cluster.operator().public());
    let output = cluster.show(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let release = format!(
        "Kubernetes:\tv1.35.4, components {}",
        digest::oci::format(&policy.releases[0].components)
    );
    for line in [
        "Policy:\tthe newest one you signed is served",
        &format!("Signer:\t{operator}"),
        "Serial:\t1",
        &release,
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}: {text}");
    }
    let json: Value = serde_json::from_str(&stdout(&cluster.show(&["-o", "json"]))).unwrap();
    assert_eq!(json["in_force"], true);
    assert_eq!(json["cluster_id"], policy.cluster.to_string());
    assert_eq!(json["images"][0]["name"], policy.images[0].image());
}

#[test]
fn nothing_of_another_operators_policy_is_shown_except_its_signer() {
    let cluster = Cluster::made();
    let other = OperatorKey::from_seed(&[9; 32]);
    cluster.serve(BelievedPolicy::sign(&cluster.policy(), &other).unwrap().as_bytes());
    let output = cluster.show(&[]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    let signer = format!("is signed by operator {}", other.public());
    assert!(
        text.starts_with("Policy:\tnot the newest one you signed: ") && text.contains(&signer),
        "{text}"
    );
    assert!(!text.contains("Image:") && !text.contains("Serial:"), "{text}");
}

#[test]
fn an_earlier_policy_and_one_of_another_cluster_are_told() {
    let cluster = Cluster::made();
    let newest = cluster.policy();
    let sign = |change: fn(&mut ClusterPolicy)| {
        let mut changed = (*newest).clone();
        change(&mut changed);
        BelievedPolicy::sign(&changed, &cluster.operator()).unwrap()
    };
    let mut state = cluster.workspace().state().unwrap().unwrap();
    state.policy = Some(sign(|policy| policy.serial = 2).into_signed());
    cluster.workspace().save_state(&state).unwrap();
    let output = cluster.show(&[]);
    assert_eq!(output.status.code(), Some(1));
    let expected = "Policy:\tnot the newest one you signed: it has serial 1, but you have signed serial 2; run `constellation apply`\n";
    assert!(stdout(&output).starts_with(expected), "{}", stdout(&output));

    for (change, expected) in [
        (
            (|policy| policy.serial = 3) as fn(&mut ClusterPolicy),
            "it has serial 3, and this workspace knows serial 2",
        ),
        (
            |policy| (policy.serial, policy.min_grant_serial) = (2, 2),
            "you have signed another policy with serial 2; restore the latest constellation-state.yaml",
        ),
    ] {
        cluster.serve(sign(change).as_bytes());
        let text = stdout(&cluster.show(&[]));
        assert!(
            text.starts_with(&format!("Policy:\tnot the newest one you signed: {expected}")),
            "{text}"
        );
    }

    cluster.serve(sign(|policy| policy.cluster = cluster_types::ClusterId::new([9; 32])).as_bytes());
    let output = cluster.show(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("is for cluster 0909"), "{}", stdout(&output));
}

#[test]
fn what_is_not_a_policy_is_an_error() {
    let cluster = Cluster::made();
    let mut changed = cluster.policy().as_bytes().to_vec();
    *changed.last_mut().unwrap() ^= 1;
    for bytes in [&b""[..], b"nonsense", &changed] {
        cluster.serve(bytes);
        let output = cluster.show(&[]);
        assert_eq!(output.status.code(), Some(1));
        let error = stderr(&output);
        assert!(error.contains("the cluster serves no valid policy"), "{error}");
        assert!(error.contains("constellation apply"), "{error}");
    }
}

/// It would be for a cluster that nobody has.
#[test]
fn apply_signs_no_policy_for_another_cluster_id() {
    let cluster = Cluster::made();
    let signed = cluster.policy();
    let mut state = cluster.workspace().state().unwrap().unwrap();
    state.measurement_salt = cluster_types::MeasurementSalt::new([9; 32]);
    cluster.workspace().save_state(&state).unwrap();
    let output = cluster.host.run(&["apply", "--yes"]);
    assert_eq!(output.status.code(), Some(1));
    let (error, expected) = (stderr(&output), format!("but this is cluster {}", signed.cluster));
    assert!(error.contains(&expected), "{error}");
    assert_eq!(cluster.policy(), signed);
}

/// Join services would refuse what the workspace has, and one that starts again would not start.
#[test]
fn apply_replaces_no_policy_that_the_workspace_does_not_know() {
    let cluster = Cluster::made();
    let later = ClusterPolicy {
        serial: 2,
        ..(*cluster.policy()).clone()
    };
    cluster.serve(BelievedPolicy::sign(&later, &cluster.operator()).unwrap().as_bytes());
    let output = cluster.host.run(&["apply", "--yes"]);
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    let expected =
        "the cluster has a policy with serial 2, which is not the one with serial 1 in constellation-state.yaml";
    assert!(error.contains(expected) && error.contains("from a backup"), "{error}");
}
