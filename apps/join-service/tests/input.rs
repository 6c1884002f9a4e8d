//! Bad input to each flag and each configuration key gives one error that names it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::collections::BTreeMap;
use std::process::{Command, Output};

use cluster_objects::JoinConfig;
use cluster_types::key_service::KeyServicePublicKey;
use cluster_types::{MeasurementSalt, OperatorPublicKey};
use measurements::{PcrReferences, ReferenceValues};
use role_grant::OperatorKey;
use tempfile::TempDir;
use test_machines::{SOFTWARE_KEY, SOFTWARE_TPM};
use test_services::{mount, must_say_one_error};

const BAD: &[(&[&str], &[&str])] = &[
    (&["--address", "9090"], &["--address", "socket address"]),
    (&["--address", "somewhere:1"], &["--address", "socket address"]),
    (&["--health-address", ""], &["--health-address", "socket address"]),
    (&["--metrics-address", "x"], &["--metrics-address", "socket address"]),
    (&["--config", ""], &["--config", "value is required"]),
    (&["--pki", ""], &["--pki", "value is required"]),
    (&["--key-service", ""], &["--key-service", "<host>:<port>"]),
    (&["--key-service", "host"], &["--key-service", "<host>:<port>"]),
    (&["--key-service", "host:0"], &["--key-service", "<host>:<port>"]),
    (&["--key-service", "http://host:1"], &["--key-service", "<host>:<port>"]),
    (
        &["--key-service-token", ""],
        &["--key-service-token", "value is required"],
    ),
    (&["--emulator", ""], &["--emulator", "value is required"]),
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

#[test]
fn a_pki_that_cannot_be_used_is_named() {
    let output = run_for(&operator(), "/nonexistent");
    must_say_one_error(&output, &["--pki", "cannot read ca.crt of the cluster's PKI"]);
}

/// Whoever may write the configuration does not choose whom the service obeys.
#[test]
fn a_configuration_of_another_operator_is_refused() {
    let output = run_for(&OperatorPublicKey::new([1; 32]), "/nonexistent");
    must_say_one_error(
        &output,
        &[
            "--config",
            "operatorPublicKey of the join configuration is",
            "this node obeys another operator",
        ],
    );
}

fn operator() -> OperatorPublicKey {
    OperatorKey::from_seed(&[6; 32]).public()
}

/// Runs the service on a machine that obeys this operator, with a good configuration.
fn run_for(operator: &OperatorPublicKey, pki: &str) -> Output {
    let (config, machine) = (config(), SOFTWARE_TPM.boot_for(operator).unwrap());
    let (config, emulator) = (config.path().to_str().unwrap(), machine.emulator());
    run(&[
        "--config",
        config,
        "--emulator",
        emulator.to_str().unwrap(),
        "--pki",
        pki,
    ])
}

#[test]
fn bad_input_to_each_key_of_the_configuration_names_it() {
    let config = config();
    for (key, bad) in [
        ("attestationVariant", ""),
        ("attestationVariant", "dummy"),
        ("referenceValues", "{}"),
        ("measurementSalt", "short"),
        ("operatorPublicKey", "00"),
        ("keyServicePublicKey", "00"),
        ("apiServerEndpoint", "10.42.1.100"),
        ("apiServerEndpoint", "a b:1"),
        ("kubernetesVersion", "1.35"),
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

#[test]
fn values_that_every_node_has_are_refused() {
    let config = config();
    // Not even a register of the image.
    let nothing = PcrReferences::new(BTreeMap::new());
    let values = ReferenceValues::new(SOFTWARE_TPM.variant(), "image", &nothing).to_json();
    std::fs::write(config.path().join("referenceValues"), values).unwrap();
    must_say_one_error(
        &run(&["--config", config.path().to_str().unwrap()]),
        &[
            "--config",
            "referenceValues of the join configuration is invalid",
            "PCR 4 must be required",
        ],
    );
}

#[test]
fn a_variant_that_does_not_fit_is_refused_by_name() {
    let config = config();
    let refused = |reason: &str| {
        let output = run(&["--config", config.path().to_str().unwrap()]);
        must_say_one_error(&output, &["--config", "referenceValues", reason]);
    };
    let (released, other) = (SOFTWARE_TPM.variant(), SOFTWARE_KEY.variant());
    std::fs::write(config.path().join("attestationVariant"), other.as_str()).unwrap();
    refused(&format!("are for variant {released}, expected {other}"));
    std::fs::write(config.path().join("referenceValues"), SOFTWARE_KEY.image().to_json()).unwrap();
    refused(&format!("cannot appraise {other}; it can appraise {released}"));
}

/// A folder with a good configuration, as the kubelet mounts it.
fn config() -> TempDir {
    let config = JoinConfig {
        reference_values: SOFTWARE_TPM.image(),
        measurement_salt: MeasurementSalt::new([5; 32]),
        operator_key: operator(),
        key_service_key: KeyServicePublicKey::new([7; 32]),
        api_server_endpoint: "10.42.1.100:6443".parse().unwrap(),
        kubernetes_version: "v1.35.4".parse().unwrap(),
        components: format!("k8s-components-sha256-{}", "ab".repeat(32)),
        component_mirror: String::new(),
    };
    let folder = TempDir::new().unwrap();
    mount(&config, folder.path()).unwrap();
    folder
}
