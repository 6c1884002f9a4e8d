//! What nodes, the API server and the platform say reaches the terminal as text that controls nothing and stays on its line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use serde_json::{Value, json};
use support::api_server::{api_server, made};
use support::{Host, stderr, stdout};

/// Sets a title, clears the screen, turns text around, and gives advice.
const HOSTILE: &str = "owned\x1b]0;owned\x07\r\nNext: run this\u{9b}2J\x1b[2J\u{202e}owned";

/// Fails unless the text is told, and harmless.
fn check(told: &str, what: &str) {
    assert!(told.contains("owned"), "{what} is not told: {told}");
    check_harmless(told, what);
}

fn check_harmless(told: &str, what: &str) {
    let hostile = told.chars().find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
    assert_eq!(hostile, None, "{what}: {told:?}");
    assert!(
        !told.lines().any(|line| line.starts_with("Next: run this")),
        "{what}: {told}"
    );
}

fn list(request: &str) -> String {
    let node = |name: &str| {
        json!({
            "metadata": {"name": name},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": HOSTILE, "message": HOSTILE}],
                "nodeInfo": {
                    "architecture": HOSTILE, "bootID": HOSTILE, "containerRuntimeVersion": HOSTILE, "kernelVersion": HOSTILE,
                    "kubeProxyVersion": HOSTILE, "kubeletVersion": HOSTILE, "machineID": HOSTILE, "operatingSystem": HOSTILE,
                    "osImage": HOSTILE, "systemUUID": HOSTILE,
                },
            },
        })
    };
    let (kind, version, items) = if request.contains("/leases") {
        ("LeaseList", "coordination.k8s.io/v1", Vec::new())
    } else {
        ("NodeList", "v1", vec![node("control-plane-0"), node(HOSTILE)])
    };
    json!({"kind": kind, "apiVersion": version, "metadata": {}, "items": items}).to_string()
}

fn refusal() -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": HOSTILE, "reason": HOSTILE, "code": 422,
    })
}

#[test]
fn a_nodes_version_is_a_release_or_unknown() {
    let host = made(api_server("200 OK", list));
    let shown = stdout(&host.run(&["status"]));
    check_harmless(&shown, "status");
    assert!(shown.contains("Ready (unknown version)\n"), "{shown}");
}

#[test]
fn an_api_server_that_refuses_controls_no_terminal() {
    let host = made(api_server("422 Unprocessable Entity", |_| refusal().to_string()));
    check(&stdout(&host.run(&["status"])), "status");
    let applied = host.run(&["apply", "--yes"]);
    assert_eq!(applied.status.code(), Some(1));
    check(&stderr(&applied), "apply");
}

#[test]
fn an_api_server_that_talks_nonsense_controls_no_terminal() {
    for status in ["200 OK", "422 Unprocessable Entity"] {
        let host = made(api_server(status, |_| HOSTILE.to_owned()));
        check_harmless(&stdout(&host.run(&["status"])), status);
    }
}

#[test]
fn a_console_controls_no_terminal() {
    let host = Host::new();
    host.configure();
    host.machines().let_machines_stop(Some(HOSTILE));
    let up = host.run(&["mini", "up"]);
    assert_eq!(up.status.code(), Some(1));
    check(&stderr(&up), "mini up");
    check(&stdout(&host.run(&["status"])), "status");
}
