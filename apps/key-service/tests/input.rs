//! Bad input to each flag gives one error that names it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::process::{Command, Output};

use key_derivation::MasterSecret;
use node_secrets::SHARED_FILES;
use test_services::must_say_one_error;

const BAD: &[(&[&str], &[&str])] = &[
    (&["--socket", ""], &["--socket", "value is required"]),
    (&["--policy-store", ""], &["--policy-store", "value is required"]),
    (&["--health-address", ""], &["--health-address", "socket address"]),
    (&["--metrics-address", "x"], &["--metrics-address", "socket address"]),
    (&["--master-secret", ""], &["--master-secret", "value is required"]),
    (&["--audit-log", ""], &["--audit-log", "value is required"]),
    (&["--refused-log", ""], &["--refused-log", "value is required"]),
    (&["--shared-files", ""], &["--shared-files", "value is required"]),
    (&["--verbose"], &["--verbose"]),
    (&["now"], &["now"]),
    (
        &["--master-secret", "/nonexistent"],
        &["--master-secret: cannot read /nonexistent", "No such file"],
    ),
    (
        &["--master-secret", "/dev/null"],
        &["--master-secret: cannot use /dev/null"],
    ),
];

/// Runs the service, which must exit at once.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_key-service"));
    command.args(arguments).output().unwrap()
}

#[test]
fn bad_input_to_each_flag_gives_one_error_that_names_it() {
    for (arguments, named) in BAD {
        must_say_one_error(&run(arguments), named);
    }
}

#[test]
fn an_audit_log_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, MasterSecret::generate().to_json().as_bytes()).unwrap();
    let secret = secret.to_str().unwrap();
    let output = run(&["--master-secret", secret, "--audit-log", "/nonexistent/log"]);
    must_say_one_error(&output, &["--audit-log: cannot use /nonexistent/log", "No such file"]);
}

#[test]
fn files_that_are_missing_and_a_socket_that_cannot_be_made_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("secret"), MasterSecret::generate().to_json().as_bytes()).unwrap();
    let files = |arguments: &[&str]| {
        let secret = path("secret");
        let (audit, refused) = (path("audit"), path("refused"));
        let logs = ["--audit-log", &audit, "--refused-log", &refused];
        run(&[&["--master-secret", &secret], &logs[..], arguments].concat())
    };
    must_say_one_error(
        &files(&["--shared-files", "/nonexistent"]),
        &[
            "--shared-files",
            "cannot read ca.crt of the cluster's shared files",
            "No such file",
        ],
    );
    std::fs::create_dir_all(path("shared/etcd")).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    for name in SHARED_FILES {
        std::fs::write(path(&format!("shared/{name}")), certificate.pem()).unwrap();
    }
    let shared = path("shared");
    for (socket, named) in [
        ("/nonexistent/socket".to_owned(), "cannot listen on /nonexistent/socket"),
        // A folder is not replaced.
        (path("."), "cannot replace"),
    ] {
        let addresses = ["--health-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"];
        let output = files(&[&["--shared-files", &shared, "--socket", &socket], &addresses[..]].concat());
        must_say_one_error(&output, &["--socket", named]);
    }
}

#[test]
fn a_master_secret_that_cannot_be_used_is_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    for bad in ["canary", r#"{"canary": 1}"#, r#"{"key": "canary", "salt": "canary"}"#] {
        std::fs::write(&path, bad).unwrap();
        let output = run(&["--master-secret", path.to_str().unwrap()]);
        must_say_one_error(&output, &["--master-secret", "cannot use"]);
        assert!(
            !String::from_utf8_lossy(&output.stderr).contains("canary"),
            "{bad}: {output:?}"
        );
    }
}
