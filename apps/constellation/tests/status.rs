//! What `status` says of Nodes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use serde_json::json;
use support::api_server::{api_server, made};
use support::stdout;

fn list(request: &str) -> String {
    let (kind, version, names) = if request.contains("/leases") {
        ("LeaseList", "coordination.k8s.io/v1", &[][..])
    } else {
        ("NodeList", "v1", &["control-plane-0", "worker-9"][..])
    };
    let items: Vec<_> = names
        .iter()
        .map(|name| json!({ "metadata": { "name": name }, "status": {} }))
        .collect();
    json!({ "kind": kind, "apiVersion": version, "metadata": {}, "items": items }).to_string()
}

/// A cluster-admin let it in without the join service.
#[test]
fn a_node_that_is_none_of_the_operators_machines_is_named() {
    let host = made(api_server("200 OK", list));
    let shown = stdout(&host.run(&["status"]));
    let lines: Vec<_> = shown.lines().collect();
    let [.., node, reason] = &lines[..] else {
        panic!("{shown}")
    };
    assert!(node.starts_with("worker-9 ") && node.contains(" none "), "{shown}");
    assert!(
        reason
            .contains("without attestation; to remove it and free its name, run `constellation node remove worker-9`"),
        "{shown}"
    );
    assert_eq!(shown.matches("without attestation").count(), 1, "{shown}");
}
