//! Whoever reads the output may go away, and the disk it is written to may be full.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::PipeWriter;
use std::process::{Command, Output, Stdio};

use cluster_config::{ClusterState, MadeOf, Workspace};
use cluster_policy::{BelievedPolicy, ClusterPolicy, Release};
use cluster_types::{ClusterId, KeyServicePublicKey};
use kubernetes_components::ComponentList;
use operator_key::OperatorKey;
use support::{Host, stderr};
use test_machines::{SOFTWARE_TPM, master_secret, operator};

/// Commands whose result is what they print.
const PRINTING: &[&[&str]] = &[
    &["version"],
    &["completion", "bash"],
    &["completion", "zsh"],
    &["--help"],
    &["mini", "up", "--help"],
    &["status"],
    &[
        "verify",
        "--cluster-id",
        "abababababababababababababababababababababababababababababababab",
    ],
    &[
        "verify",
        "--output=json",
        "--cluster-id=abababababababababababababababababababababababababababababababab",
    ],
];

/// A pipe whose reader is gone.
fn broken_pipe() -> PipeWriter {
    std::io::pipe().unwrap().1
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn into(command: &mut Command, stdout: impl Into<Stdio>) -> Output {
    command.stdout(stdout).output().unwrap()
}

/// A host with a state, which has no machines yet.
fn host() -> Host {
    let host = Host::released();
    host.configure();
    let workspace = Workspace::open(&host.workspace()).unwrap();
    let config = workspace.config().unwrap();
    let mut state = ClusterState::new();
    state.made_of = Some(MadeOf {
        provider: "qemu".to_owned(),
        name: config.name,
        kubernetes_version: config.kubernetes_version,
        components: String::new(),
        service_cidr: config.service_cidr.to_string(),
        attestation_variant: config.variant,
        reference_values: SOFTWARE_TPM.image().to_json(),
        operator_key: Some(operator()),
        nodes: BTreeMap::new(),
    });
    let policy = ClusterPolicy {
        cluster: ClusterId::new([0xab; 32]),
        serial: 1,
        images: vec![SOFTWARE_TPM.image()],
        releases: vec![Release::of(
            &ComponentList::new("v1.35.4".parse().unwrap(), Vec::new()).unwrap(),
        )],
        min_grant_serial: 0,
        key_service: KeyServicePublicKey::new([0xcd; 32]),
    };
    let signed = BelievedPolicy::sign(&policy, &OperatorKey::of(&master_secret()));
    state.policy = Some(signed.unwrap().into_signed());
    workspace.save_state(&state).unwrap();
    host
}

#[test]
fn a_printing_command_without_a_reader_ends_quietly() {
    let host = host();
    for arguments in PRINTING {
        let output = into(&mut host.command(arguments), broken_pipe());
        assert_eq!(stderr(&output), "", "{arguments:?}");
        // What a shell reports for a process that SIGPIPE ended.
        assert_eq!(output.status.code(), Some(128 + 13), "{arguments:?}");
    }
}

#[test]
fn a_printing_command_says_that_the_disk_is_full() {
    let host = host();
    for arguments in PRINTING {
        let output = into(&mut host.command(arguments), full());
        let error = stderr(&output);
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        assert!(
            error
                .to_lowercase()
                .starts_with("error: cannot write to standard output: no space left"),
            "{arguments:?}: {error}"
        );
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn an_error_that_nobody_reads_is_still_an_error() {
    let host = host();
    for (arguments, code) in [
        (&["launch"][..], 2),
        (&["mirror", "create", "x", "--from", "/nonexistent"], 1),
    ] {
        for sink in [Stdio::from(broken_pipe()), full().into()] {
            let status = host.command(arguments).stderr(sink).status().unwrap();
            assert_eq!(status.code(), Some(code), "{arguments:?}");
        }
    }
}

#[test]
fn a_cluster_is_made_and_ended_without_a_reader() {
    let host = host();
    for (up, down) in [
        (["mini", "up"], ["mini", "down", "--yes"].as_slice()),
        (["apply", "--yes"], &["terminate", "--yes"]),
    ] {
        let mut making = host.command(&up);
        let mut making = making.stdout(broken_pipe()).stderr(broken_pipe()).spawn().unwrap();
        // The node never answers, so this is as far as it gets.
        let made = host
            .workspace()
            .join("constellation-qemu/nodes/control-plane-0/qemu.pid");
        while !made.exists() {
            assert!(making.try_wait().unwrap().is_none(), "{up:?} ended");
            std::thread::yield_now();
        }
        making.kill().unwrap();
        making.wait().unwrap();
        let ended = host.command(down).stdout(full()).stderr(full()).status().unwrap();
        assert!(ended.success(), "{down:?}");
        assert_eq!(host.processes(), Vec::<i32>::new());
    }
}

#[test]
fn a_question_that_nobody_can_see_is_an_error() {
    let host = host();
    let output = into(host.command(&["apply"]).stdin(Stdio::null()), broken_pipe());
    assert!(!output.status.success());
    assert_eq!(host.processes(), Vec::<i32>::new());
}
