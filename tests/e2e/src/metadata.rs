//! The metadata of one node, as docs/interfaces.md describes it, or as a host would like it to be.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cluster_types::OperatorPublicKey;

const NODE: &str =
    r#"{"Name":"control-plane-0","ProviderID":"qemu:///control-plane-0","Role":"ControlPlane","VPCIP":"10.42.1.100"}"#;
const ENDPOINT: &str = r#"{"host":"10.42.1.100","port":6443}"#;
/// The network of an honest platform.
pub const NETWORK: &str = r#"{"cidr":"10.42.0.0/16","interface":"private0","nameServers":["10.0.2.3"]}"#;
/// Whom the nodes of tests obey.
pub(crate) const OPERATOR: OperatorPublicKey = OperatorPublicKey::new([0x0b; 32]);

/// The longest a client may take for its request.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// An answer of the metadata service.
pub enum Answer {
    /// This text, with status 200.
    Text(String),
    /// Nothing, for as long as the node waits.
    Silence,
    /// Answers that it does not exist.
    NotFound,
}

/// What is answered to a request of this name, when it was asked that often before.
pub(crate) type Answers = Box<dyn Fn(&str, usize) -> Answer + Send + Sync>;

/// The truth about a node that is the first of its cluster.
pub(crate) fn honest(name: &str, _: usize) -> Answer {
    match name {
        "self" => Answer::Text(NODE.to_owned()),
        "peers" => Answer::Text(format!("[{NODE}]")),
        "network" => Answer::Text(NETWORK.to_owned()),
        "endpoint" => Answer::Text(ENDPOINT.to_owned()),
        "initsecrethash" => Answer::Text("5a".repeat(32)),
        "operatorkey" => Answer::Text(OPERATOR.to_string()),
        _ => Answer::NotFound,
    }
}

/// A metadata service on loopback, until it is dropped.
pub(crate) struct Metadata {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

struct Shared {
    answers: Answers,
    asked: Mutex<BTreeMap<String, usize>>,
    stop: AtomicBool,
}

impl Metadata {
    pub(crate) fn start(answers: Answers) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            answers,
            asked: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let server = thread::spawn({
            let shared = shared.clone();
            move || {
                for stream in listener.incoming() {
                    if shared.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // A client that has gone away is not our problem.
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

    /// Whether the node requested this.
    pub(crate) fn was_asked_for(&self, name: &str) -> bool {
        self.asked().contains_key(name)
    }

    /// Everything the node requested, and how often.
    pub(crate) fn asked(&self) -> BTreeMap<String, usize> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(READ_LIMIT))?;
        let mut request = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        request.read_line(&mut first)?;
        let mut header = String::new();
        while request.read_line(&mut header)? > 2 {
            header.clear();
        }
        let path = first.split(' ').nth(1).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let (status, body) = match (self.answers)(&name, self.count(name.clone())) {
            Answer::Text(body) => ("200 OK", body),
            Answer::NotFound => ("404 Not Found", String::new()),
            Answer::Silence => return keep_waiting(stream),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

impl Shared {
    /// Counts a request, and gives how many there were before.
    fn count(&self, name: String) -> usize {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let before = asked.entry(name).or_default();
        *before += 1;
        *before - 1
    }
}

/// The connection ends when the node loses patience, or the test ends.
fn keep_waiting(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(None)?;
    thread::spawn(move || io::copy(&mut stream, &mut io::sink()));
    Ok(())
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
