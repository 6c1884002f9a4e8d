//! How the metadata endpoint shows that it is ours, and not another program that listens on its port.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use atomic_file::Access;
use aws_lc_rs::{hmac, rand};

use crate::error::{Context, QemuError};

const KEY_LEN: usize = 32;
const CHALLENGE_LEN: usize = 32;
/// Keeps the answers apart from anything else a key could be used for.
const LABEL: &[u8] = b"constellation metadata endpoint v1";
/// How long an endpoint may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// A longer answer is not ours, in bytes.
const MAX_ANSWER_LEN: usize = 4096;

/// What only the CLI and the endpoint know: a file that others cannot read.
pub(crate) struct ProofKey(hmac::Key);

impl ProofKey {
    pub(crate) fn generate(path: &Path) -> Result<Self, QemuError> {
        let bytes: [u8; KEY_LEN] = random();
        atomic_file::replace(path, &bytes, Access::Owner).on("write", path)?;
        Ok(Self::from(bytes))
    }

    pub(crate) fn load(path: &Path) -> Result<Self, QemuError> {
        let bytes = fs::read(path).on("read", path)?;
        let bytes: Result<[u8; KEY_LEN], _> = bytes.try_into();
        let other_length = |_| io::Error::new(io::ErrorKind::InvalidData, "the file has the wrong length");
        Ok(Self::from(bytes.map_err(other_length).on("read", path)?))
    }

    /// The answer of the endpoint at this port of loopback. The port is in it, so that no program can get it elsewhere.
    pub(crate) fn answer(&self, port: u16, challenge: &str) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(LABEL);
        context.update(&port.to_be_bytes());
        context.update(challenge.as_bytes());
        hex::encode(context.sign())
    }

    /// Whether what listens at this port of loopback knows the key.
    pub(crate) fn is_known_at(&self, port: u16) -> bool {
        let challenge = hex::encode(random::<CHALLENGE_LEN>());
        let expected = self.answer(port, &challenge);
        // The body ends the answer; its head does not matter.
        ask(port, &challenge).is_ok_and(|answer| answer.ends_with(expected.as_bytes()))
    }
}

impl From<[u8; KEY_LEN]> for ProofKey {
    fn from(bytes: [u8; KEY_LEN]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
    }
}

/// One request of HTTP/1.0, after whose answer the connection ends (RFC 1945 section 1.3).
fn ask(port: u16, challenge: &str) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    let left = || {
        deadline
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    };
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ANSWER_LIMIT)?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(format!("GET /proof/{challenge} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 512];
    while answer.len() < MAX_ANSWER_LEN {
        stream.set_read_timeout(Some(left().ok_or(io::ErrorKind::TimedOut)?))?;
        match stream.read(&mut part)? {
            0 => break,
            count => answer.extend_from_slice(&part[..count]),
        }
    }
    Ok(answer)
}

fn random<const LEN: usize>() -> [u8; LEN] {
    let mut bytes = [0; LEN];
    rand::fill(&mut bytes).expect("the system's random source does not fail after boot");
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Listens on a free port and answers every connection with what the function makes of the request.
    fn listen(answer: impl Fn(&str) -> Option<String> + Send + 'static) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 1024];
                let count = stream.read(&mut request).unwrap();
                match answer(str::from_utf8(&request[..count]).unwrap()) {
                    Some(text) => write!(stream, "HTTP/1.0 200 OK\r\n\r\n{text}").unwrap(),
                    // Says nothing for as long as the test lives.
                    None => held.push(stream),
                }
            }
        });
        port
    }

    fn challenge(request: &str) -> &str {
        request.split(['/', ' ']).nth(3).unwrap()
    }

    #[test]
    fn only_who_knows_the_key_and_has_the_port_is_ours() {
        let key = ProofKey::from([1; KEY_LEN]);
        let other_port = listen(|request| Some(ProofKey::from([1; KEY_LEN]).answer(1, challenge(request))));
        let other_key = listen(|request| Some(ProofKey::from([2; KEY_LEN]).answer(0, challenge(request))));
        let echo = listen(|request| Some(request.to_owned()));
        let silent = listen(|_| None);
        let endless = listen(|_| Some("0".repeat(100_000)));
        for port in [other_port, other_key, echo, silent, endless] {
            assert!(!key.is_known_at(port));
        }
    }

    #[test]
    fn the_key_is_kept_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metadata.key");
        let key = ProofKey::generate(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ProofKey::load(&path).unwrap().answer(7, "x"), key.answer(7, "x"));
        fs::write(&path, "short").unwrap();
        assert!(ProofKey::load(&path).is_err());
    }
}
