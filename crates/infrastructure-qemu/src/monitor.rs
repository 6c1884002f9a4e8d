//! QEMU's monitor (QMP): whether a machine whose QEMU runs is paused, and letting it go on.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::folder::NodeFolder;

/// How long QEMU may take to answer. It serves one connection at a time.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// More than a greeting, some events and the answers, in bytes.
const MAX_ANSWERS_LEN: u64 = 64 * 1024;

/// Why the processors of a machine do not run, although QEMU does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// There is no space for what the machine writes to its state disk: QEMU pauses it then (`werror=enospc`, the default).
    DiskFull,
    /// Another reason, in QEMU's word.
    Other(String),
}

/// Why a machine is paused, if it is. If QEMU does not answer, the machine counts as running.
pub(crate) fn pause(folder: &NodeFolder) -> Option<Pause> {
    let answer = execute(folder, "query-status").ok()?;
    // RunState in qapi/run-state.json of QEMU. A machine does not stay in any of the others.
    match answer["status"].as_str()? {
        "io-error" => Some(Pause::DiskFull),
        other @ ("paused" | "internal-error") => Some(Pause::Other(other.to_owned())),
        _ => None,
    }
}

/// Lets a paused machine go on. What it could not write is tried again.
pub(crate) fn resume(folder: &NodeFolder) -> io::Result<()> {
    execute(folder, "cont").map(drop)
}

/// A line from QEMU. The greeting and events have neither field.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    desc: String,
}

/// The result of a command without arguments.
fn execute(folder: &NodeFolder, command: &str) -> io::Result<Value> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    let stream = open(folder)?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    let mut messages = BufReader::new((&stream).take(MAX_ANSWERS_LEN));
    let mut run = |command| {
        (&stream).write_all(format!("{}\n", json!({ "execute": command })).as_bytes())?;
        read_result(&stream, &mut messages, deadline)
    };
    run("qmp_capabilities")?;
    run(command)
}

fn open(folder: &NodeFolder) -> io::Result<UnixStream> {
    // Without waiting: a queue that is full stays so for as long as somebody else uses the monitor.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let opened = File::open(folder.path())?;
    connect(&socket, &SocketAddrUnix::new(short_path(&opened))?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// The address of a socket has room for 107 bytes (unix(7)), which a path easily exceeds.
fn short_path(folder: &File) -> String {
    format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), NodeFolder::QMP_SOCKET)
}

fn read_result(stream: &UnixStream, messages: &mut impl BufRead, deadline: Instant) -> io::Result<Value> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut line = String::new();
        if messages.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let message: Message = serde_json::from_str(&line)?;
        if let Some(failure) = message.error {
            return Err(io::Error::other(failure.desc));
        }
        if let Some(result) = message.result {
            return Ok(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tempfile::TempDir;

    use super::*;
    use crate::folder::RunFolder;

    /// In a folder whose path is longer than the address of a socket may be.
    fn listener() -> (TempDir, NodeFolder, UnixListener) {
        let workspace = tempfile::Builder::new().prefix(&"long".repeat(30)).tempdir().unwrap();
        let folder = RunFolder::in_workspace(workspace.path()).node(&"worker-0".parse().unwrap());
        folder.create(0).unwrap();
        let listener = UnixListener::bind(short_path(&File::open(folder.path()).unwrap())).unwrap();
        (workspace, folder, listener)
    }

    /// A machine in this state, which goes on unless it has to be reset.
    fn machine(mut state: &'static str) -> (TempDir, NodeFolder) {
        let (workspace, folder, listener) = listener();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = converse(&stream.unwrap(), &mut state);
            }
        });
        (workspace, folder)
    }

    fn converse(mut stream: &UnixStream, state: &mut &'static str) -> io::Result<()> {
        writeln!(stream, r#"{{"QMP": {{"version": {{}}, "capabilities": ["oob"]}}}}"#)?;
        for line in BufReader::new(stream).lines() {
            let command: Value = serde_json::from_str(&line?)?;
            let answer = match command["execute"].as_str().unwrap() {
                "query-status" => json!({ "return": { "status": *state, "running": *state == "running" } }),
                "cont" if *state == "internal-error" => {
                    json!({ "error": { "class": "GenericError", "desc": "Resetting the Virtual Machine is required" } })
                }
                "cont" => {
                    *state = "running";
                    writeln!(stream, r#"{{"timestamp": {{"seconds": 1}}, "event": "RESUME"}}"#)?;
                    json!({ "return": {} })
                }
                _ => json!({ "return": {} }),
            };
            writeln!(stream, "{answer}")?;
        }
        Ok(())
    }

    #[test]
    fn a_paused_machine_is_told_from_one_that_runs_and_goes_on() {
        for (state, expected) in [
            ("running", None),
            ("shutdown", None),
            ("io-error", Some(Pause::DiskFull)),
            ("paused", Some(Pause::Other("paused".to_owned()))),
        ] {
            let (_workspace, folder) = machine(state);
            assert_eq!(pause(&folder), expected);
            resume(&folder).unwrap();
            assert_eq!(pause(&folder), None);
        }
    }

    #[test]
    fn a_machine_that_cannot_go_on_says_why() {
        let (_workspace, folder) = machine("internal-error");
        assert_eq!(pause(&folder), Some(Pause::Other("internal-error".to_owned())));
        let error = resume(&folder).unwrap_err();
        assert!(error.to_string().contains("Resetting"), "{error}");
    }

    #[test]
    fn a_monitor_that_somebody_else_uses_is_not_waited_for_long() {
        let (_workspace, folder, _listener) = listener();
        let begun = Instant::now();
        assert_eq!(pause(&folder), None);
        assert!(begun.elapsed() < 2 * ANSWER_LIMIT);
    }
}
