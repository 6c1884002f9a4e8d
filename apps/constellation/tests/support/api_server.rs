//! An API server that is only a script, and a workspace whose cluster it serves.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use cluster_config::{InitProgress, Workspace};
use key_derivation::cluster_id;
use serde_json::json;
use test_machines::{SOFTWARE_TPM, Technology};

use super::Host;

/// An API server that says the same to every request, and nothing that is true.
pub(crate) fn api_server(status: &'static str, answer: impl Fn(&str) -> String + Send + 'static) -> u16 {
    api_server_with(move |request| (status, answer(request)))
}

/// With a status for each request.
pub(crate) fn api_server_with(answer: impl Fn(&str) -> (&'static str, String) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that went away is no failure.
            let _ = respond(stream.unwrap(), &answer);
        }
    });
    port
}

fn respond(mut stream: TcpStream, answer: impl Fn(&str) -> (&'static str, String)) -> std::io::Result<()> {
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
    let (status, body) = answer(&request);
    let head = format!(
        "content-type: application/json\r\nconnection: close\r\ncontent-length: {}",
        body.len()
    );
    write!(stream, "HTTP/1.1 {status}\r\n{head}\r\n\r\n{body}")
}

/// A cluster as far as the program knows. Its API server is at this port.
pub(crate) fn made(port: u16) -> Host {
    made_of(SOFTWARE_TPM, port)
}

/// The same with machines of this technology.
pub(crate) fn made_of(technology: &'static dyn Technology, port: u16) -> Host {
    made_with(technology, port, |_| {})
}

/// The same with another configuration.
pub(crate) fn made_with(technology: &'static dyn Technology, port: u16, configure: impl FnOnce(&Host)) -> Host {
    let host = Host::with(technology);
    host.configure();
    configure(&host);
    host.until(&["mini", "up"], "control-plane-0 is booting\n").kill();
    let workspace = Workspace::open(&host.workspace()).unwrap();
    let mut state = workspace.state().unwrap().unwrap();
    state.init = InitProgress::Done;
    state.members.insert("control-plane-0".parse().unwrap());
    let secret = workspace.master_secret().unwrap().kek().measurement_secret();
    state.cluster_id = Some(cluster_id(&secret, &state.measurement_salt));
    workspace.save_state(&state).unwrap();
    lead_to(&host, port);
    host
}

/// Writes a kubeconfig for the API server at this port.
pub(crate) fn lead_to(host: &Host, port: u16) {
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
}
