//! `audit verify`: files of a log, as an operator copied them from a control plane.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::fs;

use audit_log::{AuditLog, Limits};
use serde_json::json;
use support::{Host, stderr, stdout};

#[test]
fn a_log_is_accepted_as_it_was_written_and_no_other_way() {
    let host = Host::new();
    let log = host.path("log");
    let limits = Limits { file_len: 400, kept: 4 };
    let audit = AuditLog::open(&log, limits).unwrap();
    for number in 0..6 {
        audit.write(&json!({ "number": number })).unwrap();
    }
    let rotated = host.path("log.1");
    let (log, rotated) = (log.to_str().unwrap(), rotated.to_str().unwrap());
    let verify = |files: &[&str]| host.run(&[&["audit", "verify"], files].concat());
    let output = verify(&[rotated, log]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stdout(&output).starts_with("6 records follow each other."),
        "{}",
        stdout(&output)
    );

    let empty = host.path("empty");
    fs::write(&empty, "").unwrap();
    let output = verify(&[empty.to_str().unwrap()]);
    assert!(stderr(&output).contains("have no records"), "{}", stderr(&output));

    let output = verify(&[log, rotated]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("line 1: follows a record with hash 000000"));

    let text = fs::read_to_string(rotated).unwrap();
    fs::write(rotated, text.replace("\"number\":1", "\"number\":7")).unwrap();
    let output = verify(&[rotated, log]);
    assert!(
        stderr(&output).contains("line 3: follows a record with hash"),
        "{}",
        stderr(&output)
    );
}
