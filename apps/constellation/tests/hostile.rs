//! What nodes, the API server and the platform say reaches the terminal as text that controls nothing and stays on its line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use cluster_config::{InitProgress, Workspace};
use cluster_types::ClusterId;
use serde_json::{Value, json};
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

/// An API server that says the same to every request, and nothing that is true.
fn api_server(status: &'static str, answer: impl Fn(&str) -> String + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that went away is no failure.
            let _ = respond(stream.unwrap(), status, &answer);
        }
    });
    port
}

fn respond(mut stream: TcpStream, status: &str, answer: impl Fn(&str) -> String) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    reader.read_exact(&mut vec![0; length])?;
    let body = answer(&request);
    let head = format!(
        "content-type: application/json\r\nconnection: close\r\ncontent-length: {}",
        body.len()
    );
    write!(stream, "HTTP/1.1 {status}\r\n{head}\r\n\r\n{body}")
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

/// A cluster as far as the program knows. Its API server is at this port.
fn made(port: u16) -> Host {
    let host = Host::new();
    host.configure();
    host.until(&["mini", "up"], "control-plane-0 is booting\n").kill();
    let workspace = Workspace::open(&host.workspace()).unwrap();
    let mut state = workspace.state().unwrap().unwrap();
    state.init = InitProgress::Done;
    state.cluster_id = Some(ClusterId::new([7; 32]));
    workspace.save_state(&state).unwrap();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "admin",
        "clusters": [{"name": "kubernetes", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "contexts": [{"name": "admin", "context": {"cluster": "kubernetes", "user": "admin"}}],
        "users": [{"name": "admin", "user": {"token": "none"}}],
    });
    fs::write(
        host.workspace().join("constellation-admin.conf"),
        kubeconfig.to_string(),
    )
    .unwrap();
    host
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
