//! Proxies are for downloads: the cluster's API is reached without one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::{Host, stderr, stdout};

/// Accepts connections and closes them, and counts.
fn count() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counter.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    (port, connections)
}

fn kubeconfig(port: u16) -> String {
    format!(
        "\
apiVersion: v1
kind: Config
clusters:
- name: kubernetes
  cluster:
    server: https://127.0.0.1:{port}
    insecure-skip-tls-verify: true
contexts:
- name: admin
  context:
    cluster: kubernetes
    user: admin
current-context: admin
users:
- name: admin
  user:
    token: none
"
    )
}

#[test]
fn no_proxy_comes_between_us_and_the_clusters_api() {
    let host = Host::new();
    host.configure();
    host.until(&["apply", "--yes"], "control-plane-0 is booting\n").kill();
    let (api, reached) = count();
    let (proxy, asked) = count();
    fs::write(host.workspace().join("constellation-admin.conf"), kubeconfig(api)).unwrap();
    for value in [format!("http://127.0.0.1:{proxy}"), "http://[not a proxy".to_owned()] {
        let mut status = host.command(&["status"]);
        for variable in [
            "HTTPS_PROXY",
            "https_proxy",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            status.env(variable, &value);
        }
        let before = reached.load(Ordering::SeqCst);
        let output = status.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(reached.load(Ordering::SeqCst) > before, "{}", stdout(&output));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}
