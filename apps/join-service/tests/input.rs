//! Bad input to each flag and each configuration key gives one error that names it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use attestation::Membership;
use cluster_types::{ClusterId, NodeRole};
use measurements::{PcrReferences, ReferenceValues};
use tempfile::TempDir;
use test_machines::{SOFTWARE_KEY, SOFTWARE_TPM};
use test_services::{AttestationDaemon, JoinConfigExample, mount, must_say_one_error};

const BAD: &[(&[&str], &[&str])] = &[
    (&["--address", "9090"], &["--address", "socket address"]),
    (&["--address", "somewhere:1"], &["--address", "socket address"]),
    (&["--health-address", ""], &["--health-address", "socket address"]),
    (&["--metrics-address", "x"], &["--metrics-address", "socket address"]),
    (&["--config", ""], &["--config", "value is required"]),
    (
        &["--api-server-certificate", ""],
        &["--api-server-certificate", "value is required"],
    ),
    (&["--policy-store", ""], &["--policy-store", "value is required"]),
    (&["--key-service", ""], &["--key-service", "value is required"]),
    (
        &["--attestation-socket", ""],
        &["--attestation-socket", "value is required"],
    ),
    (&["--session-limit", "0"], &["--session-limit", "1..=120"]),
    (&["--session-limit", "1h"], &["--session-limit", "invalid digit"]),
    (&["--verbose"], &["--verbose"]),
    (&["now"], &["now"]),
    (
        &["--config", "/nonexistent"],
        &["--config: cannot use /nonexistent", "cannot be read"],
    ),
];

/// Runs the service, which must exit at once.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_join-service"));
    command.args(arguments).env_remove("KUBECONFIG").output().unwrap()
}

#[test]
fn bad_input_to_each_flag_gives_one_error_that_names_it() {
    for (arguments, named) in BAD {
        must_say_one_error(&run(arguments), named);
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named() {
    let output = run_on_member(&example(), &example(), &["--api-server-certificate", "/nonexistent"]).await;
    must_say_one_error(
        &output,
        &["--api-server-certificate", "cannot read the API server's certificate"],
    );
}

/// Whoever may write the configuration does not choose whom the service obeys.
#[tokio::test]
async fn a_configuration_of_another_operator_is_refused() {
    let other = JoinConfigExample {
        operator_seed: [9; 32],
        ..example()
    };
    let output = run_on_member(&example(), &other, &[]).await;
    must_say_one_error(
        &output,
        &[
            "--config",
            "clusterPolicy",
            "is signed by operator",
            "not by the expected one",
        ],
    );
}

#[tokio::test]
async fn a_configuration_of_another_cluster_is_refused() {
    let other = JoinConfigExample {
        cluster: ClusterId::new([9; 32]),
        ..example()
    };
    let output = run_on_member(&example(), &other, &[]).await;
    must_say_one_error(&output, &["--config", "clusterPolicy", "is for cluster 0909"]);
}

/// Nothing would say any more which policies are too old.
#[tokio::test]
async fn a_node_that_has_seen_no_policy_admits_nobody() {
    let output = run_on_member(&example(), &example(), &["--policy-store", "/nonexistent"]).await;
    must_say_one_error(&output, &["--config", "clusterPolicy", "cannot read /nonexistent"]);
}

/// Runs the service on a control plane of the cluster in `node`, with the configuration `config`.
async fn run_on_member(node: &JoinConfigExample, config: &JoinConfigExample, arguments: &[&str]) -> Output {
    let machine = SOFTWARE_TPM.boot_for(&node.operator().public()).unwrap();
    let member = Membership::new(node.cluster, NodeRole::ControlPlane);
    machine.attester().unwrap().measure_membership(&member).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_join-service"));
    let daemon = AttestationDaemon::start(program.parent().unwrap(), SOFTWARE_TPM, &*machine).await;
    let socket = daemon.as_ref().unwrap().join_socket();
    let mounted = mounted(config);
    let store = mounted.path().join("newest-policy");
    std::fs::write(&store, node.policy().as_bytes()).unwrap();
    let mut command = vec!["--config", mounted.path().to_str().unwrap()];
    command.extend(["--attestation-socket", socket.to_str().unwrap()]);
    if !arguments.contains(&"--policy-store") {
        command.extend(["--policy-store", store.to_str().unwrap()]);
    }
    command.extend(arguments);
    run(&command)
}

#[test]
fn bad_input_to_each_key_of_the_configuration_names_it() {
    let config = config();
    for (key, bad) in [
        ("clusterPolicy", ""),
        ("clusterPolicy", "nonsense"),
        ("measurementSalt", "short"),
        ("apiServerEndpoint", "10.42.1.100"),
        ("apiServerEndpoint", "a b:1"),
        ("components", ""),
        ("components", "../secrets"),
        ("componentMirror", "ftp://host"),
        ("componentMirror", "http://"),
    ] {
        let path = config.path().join(key);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, bad).unwrap();
        let output = run(&["--config", config.path().to_str().unwrap()]);
        must_say_one_error(
            &output,
            &["--config", &format!("{key} of the join configuration is invalid")],
        );
        std::fs::remove_file(&path).unwrap();
        let output = run(&["--config", config.path().to_str().unwrap()]);
        must_say_one_error(
            &output,
            &["--config", &format!("{key} of the join configuration cannot be read")],
        );
        std::fs::write(&path, good).unwrap();
    }
}

#[tokio::test]
async fn values_that_every_node_has_are_refused() {
    // Not even a register of the image.
    let nothing = PcrReferences::new(BTreeMap::new());
    let open = JoinConfigExample {
        image: ReferenceValues::new(SOFTWARE_TPM.variant(), "image", &nothing),
        ..example()
    };
    must_say_one_error(
        &run_on_member(&open, &open, &[]).await,
        &[
            "--config",
            "clusterPolicy",
            "cannot be appraised",
            "PCR 4 must be required",
        ],
    );
}

#[tokio::test]
async fn a_variant_that_does_not_fit_is_refused_by_name() {
    let (released, other) = (SOFTWARE_TPM.variant(), SOFTWARE_KEY.variant());
    let foreign = JoinConfigExample {
        image: SOFTWARE_KEY.image(),
        ..example()
    };
    must_say_one_error(
        &run_on_member(&foreign, &foreign, &[]).await,
        &[
            "--config",
            "clusterPolicy",
            &format!("cannot appraise {other}; it can appraise {released}"),
        ],
    );
}

/// A folder with this configuration, as the kubelet mounts it.
fn mounted(example: &JoinConfigExample) -> TempDir {
    let folder = TempDir::new().unwrap();
    mount(&example.config(), folder.path()).unwrap();
    folder
}

fn config() -> TempDir {
    mounted(&example())
}

fn example() -> JoinConfigExample {
    JoinConfigExample::of(SOFTWARE_TPM)
}
