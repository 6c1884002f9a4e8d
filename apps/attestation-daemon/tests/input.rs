//! Bad input to each flag gives one error that names it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::process::Command;

use test_services::must_say_one_error;

const BAD: &[(&[&str], &[&str])] = &[
    (&["--join-socket", ""], &["--join-socket", "value is required"]),
    (
        &["--verification-socket", ""],
        &["--verification-socket", "value is required"],
    ),
    (&["--join-user", "root"], &["--join-user", "invalid digit"]),
    (&["--verification-user", ""], &["--verification-user", "cannot parse"]),
    (&["--emulator", ""], &["--emulator", "value is required"]),
    (
        &["--emulator", "/nonexistent"],
        &["--emulator: cannot attest with /nonexistent", "No such file"],
    ),
    (&["--verbose"], &["--verbose"]),
    (&["now"], &["now"]),
];

#[test]
fn bad_input_to_each_flag_gives_one_error_that_names_it() {
    for (arguments, named) in BAD {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attestation-daemon"));
        must_say_one_error(&command.args(*arguments).output().unwrap(), named);
    }
}
