//! Bad input to each flag gives one error that names it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::process::{Command, Output};

const BAD: &[(&[&str], &[&str])] = &[
    (&["--address", "9090"], &["--address", "socket address"]),
    (
        &["--http-address", "localhost:1"],
        &["--http-address", "socket address"],
    ),
    (&["--health-address", ""], &["--health-address", "socket address"]),
    (&["--metrics-address", "x"], &["--metrics-address", "socket address"]),
    (&["--tpm-socket", ""], &["--tpm-socket", "value is required"]),
    (
        &["--tpm-socket", "/nonexistent"],
        &["--tpm-socket: cannot connect to /nonexistent", "No such file"],
    ),
    (&["--verbose"], &["--verbose"]),
    (&["now"], &["now"]),
];

/// Runs the service, which must end at once.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verification-service"));
    command.args(arguments).output().unwrap()
}

#[test]
fn bad_input_to_each_flag_gives_one_error_that_names_it() {
    for (arguments, named) in BAD {
        let output = run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(named.iter().all(|name| error.contains(name)), "{arguments:?}: {error}");
        let errors = error.lines().filter(|line| line.to_lowercase().starts_with("error:"));
        assert_eq!(errors.count(), 1, "{error}");
    }
}
