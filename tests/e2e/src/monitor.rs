//! QEMU's monitor (QMP): keys, and what was read from a disk.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// The longest QEMU may take for a command.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A connection to the monitor. QEMU serves one at a time.
pub(crate) struct Monitor {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Monitor {
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        // The address of a socket has room for 107 bytes (unix(7)), which a path easily exceeds.
        let folder = File::open(socket.parent().context("a socket is in a folder")?)?;
        let name = socket.file_name().context("a socket has a name")?;
        let short = Path::new("/proc/self/fd")
            .join(folder.as_raw_fd().to_string())
            .join(name);
        let stream = UnixStream::connect(short).context("connecting to QEMU's monitor")?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let answers = BufReader::new(stream.try_clone()?);
        let mut monitor = Self { stream, answers };
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let message = json!({"execute": command, "arguments": arguments});
        writeln!(self.stream, "{message}").context("writing to QEMU's monitor")?;
        loop {
            let mut line = String::new();
            let length = self
                .answers
                .read_line(&mut line)
                .context("reading from QEMU's monitor")?;
            if length == 0 {
                bail!("QEMU closed its monitor");
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            // The greeting and events are neither.
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }
}
