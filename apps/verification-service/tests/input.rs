//! Bad input to each flag gives one error that names it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::process::{Command, Output};

use test_services::must_say_one_error;

const BAD: &[(&[&str], &[&str])] = &[
    (&["--address", "9090"], &["--address", "socket address"]),
    (
        &["--http-address", "localhost:1"],
        &["--http-address", "socket address"],
    ),
    (&["--health-address", ""], &["--health-address", "socket address"]),
    (&["--metrics-address", "x"], &["--metrics-address", "socket address"]),
    (
        &["--attestation-socket", ""],
        &["--attestation-socket", "value is required"],
    ),
    (
        &["--attestation-socket", "/nonexistent"],
        &["--attestation-socket: cannot attest with /nonexistent", "No such file"],
    ),
    (&["--verbose"], &["--verbose"]),
    (&["now"], &["now"]),
];

/// Runs the service, which must exit at once.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verification-service"));
    command.args(arguments).output().unwrap()
}

#[test]
fn bad_input_to_each_flag_gives_one_error_that_names_it() {
    for (arguments, named) in BAD {
        must_say_one_error(&run(arguments), named);
    }
}
