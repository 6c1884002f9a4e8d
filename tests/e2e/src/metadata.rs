//! The metadata of one node, as docs/interfaces.md describes it.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const NODE: &str =
    r#"{"Name":"control-plane-0","ProviderID":"qemu:///control-plane-0","Role":"ControlPlane","VPCIP":"10.42.1.100"}"#;
const ENDPOINT: &str = r#"{"host":"10.42.1.100","port":6443}"#;
/// The longest a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(30);

/// A metadata service on loopback, until it is dropped.
pub(crate) struct Metadata {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<BTreeSet<String>>,
    stop: AtomicBool,
}

impl Metadata {
    pub(crate) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let server = thread::spawn({
            let shared = shared.clone();
            move || {
                for stream in listener.incoming() {
                    if shared.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // A client that is gone again is no problem of ours.
                    let _ = stream.and_then(|stream| shared.answer(stream));
                }
            }
        });
        Ok(Self {
            address,
            shared,
            server: Some(server),
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Whether the node asked for this.
    pub(crate) fn was_asked_for(&self, name: &str) -> bool {
        self.asked().contains(name)
    }

    /// Everything the node asked for.
    pub(crate) fn asked(&self) -> BTreeSet<String> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut request = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        request.read_line(&mut first)?;
        let mut header = String::new();
        while request.read_line(&mut header)? > 2 {
            header.clear();
        }
        let path = first.split(' ').nth(1).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let (status, body) = match name.as_str() {
            "self" => ("200 OK", NODE.to_owned()),
            "peers" => ("200 OK", format!("[{NODE}]")),
            "endpoint" => ("200 OK", ENDPOINT.to_owned()),
            "initsecrethash" => ("200 OK", "5a".repeat(32)),
            _ => ("404 Not Found", String::new()),
        };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the server, which then sees that it is to stop.
        let woken = TcpStream::connect(self.address).is_ok();
        if let Some(server) = self.server.take().filter(|_| woken) {
            let _ = server.join();
        }
    }
}
