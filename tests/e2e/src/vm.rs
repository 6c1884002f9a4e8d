//! A running virtual machine: its life, and what it said.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::metadata::Metadata;
use crate::monitor::Monitor;
use crate::process::{CONDITION_LIMIT, INTERVAL, Process};

/// More of a console is not printed.
const MAX_PRINTED: usize = 64 * 1024;

/// What the kernel says when an emulated processor lost the interrupt of its timer (docs/pitfalls.md).
const LOST_TIMER: &str = "kthread timer wakeup didn't happen";
/// How lines of the first program of a node begin, after the time.
const NODE_INIT: &str = "constellation: ";

/// A running VM. Dropping it ends everything.
pub struct Vm {
    pub(crate) name: &'static str,
    pub(crate) started: Instant,
    pub(crate) bootstrapper: SocketAddr,
    /// How much of the console is from before the last reset by [`Self::reset_if_a_timer_was_lost`].
    pub(crate) before_reset: usize,
    // Dropped in this order: first the machine, last the folder.
    pub(crate) qemu: Process,
    pub(crate) _swtpm: Process,
    pub(crate) metadata: Metadata,
    pub(crate) folder: TempDir,
}

impl Vm {
    /// Where the bootstrapper is reached.
    #[must_use]
    pub fn bootstrapper(&self) -> SocketAddr {
        self.bootstrapper
    }

    /// Everything the machine wrote to its serial console so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn console(&self) -> Result<String> {
        let mut bytes = Vec::new();
        File::open(self.file("console.log"))
            .and_then(|mut log| log.read_to_end(&mut bytes))
            .context("reading the console's log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until the bootstrapper has all it needs to open its port.
    ///
    /// # Errors
    /// When the machine ends before.
    pub fn wait_for_bootstrapper(&mut self) -> Result<()> {
        self.wait_until("the bootstrapper to read its metadata", |vm| {
            Ok(vm.metadata.was_asked_for("initsecrethash"))
        })
    }

    /// Waits for a condition.
    ///
    /// # Errors
    /// When the machine ends before, the condition cannot be looked at, or patience ends.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !condition(self)? {
            self.reset_if_a_timer_was_lost()?;
            self.must_be_running().with_context(|| format!("waiting for {what}"))?;
            ensure!(
                start.elapsed() < CONDITION_LIMIT,
                "{what}: not within {CONDITION_LIMIT:?}"
            );
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// A kernel to which that happens does not start any program. It is the emulator's fault and no result of a test, so the machine boots
    /// once more and is measured from zero.
    fn reset_if_a_timer_was_lost(&mut self) -> Result<()> {
        // Before QEMU is up, there is no console.
        let console = self.console().unwrap_or_default();
        let now = console.get(self.before_reset..).unwrap_or_default();
        if now.contains(LOST_TIMER) && !now.contains(NODE_INIT) {
            self.before_reset = console.len();
            self.say("a processor lost its timer: resetting the machine");
            self.monitor()?.execute("system_reset", json!({}))?;
        }
        Ok(())
    }

    /// # Errors
    /// When the machine has ended.
    pub fn must_be_running(&mut self) -> Result<()> {
        match self.qemu.ended()? {
            None => Ok(()),
            Some(status) => bail!("the machine has ended: {status}"),
        }
    }

    /// Waits until the machine has ended by itself, and says what was on its console.
    ///
    /// # Errors
    /// When it does not end, or QEMU failed.
    pub fn wait_for_end(&mut self) -> Result<String> {
        let start = Instant::now();
        let status = loop {
            match self.qemu.ended()? {
                Some(status) => break status,
                None if start.elapsed() > CONDITION_LIMIT => {
                    bail!("the machine did not end within {CONDITION_LIMIT:?}")
                }
                None => {
                    self.reset_if_a_timer_was_lost()?;
                    thread::sleep(INTERVAL);
                }
            }
        };
        ensure!(ExitStatus::success(&status), "QEMU failed: {status}");
        ensure!(
            self.metadata.asked().is_empty(),
            "the bootstrapper ran: it asked for {:?}",
            self.metadata.asked()
        );
        self.console()
    }

    /// Stops the machine half of the time until it says something. Its clock stands still meanwhile, the RTC does not: to the
    /// node it looks as if the clock ran at half the rate.
    ///
    /// # Errors
    /// When the machine ends before, or patience ends.
    pub fn run_half_of_the_time_until_it_says(&mut self, text: &str) -> Result<()> {
        let mut monitor = self.monitor()?;
        self.wait_until(text, |vm| {
            monitor.execute("stop", json!({}))?;
            thread::sleep(INTERVAL);
            monitor.execute("cont", json!({}))?;
            Ok(vm.console()?.contains(text))
        })
    }

    /// Connects to the serial console, to type on it.
    ///
    /// # Errors
    /// When QEMU does not take the connection.
    pub fn keyboard(&self) -> Result<impl Write + use<>> {
        let console = UnixStream::connect(self.file("console.sock")).context("connecting to the console")?;
        let mut output = console.try_clone()?;
        // Output that nothing reads would block the machine. The thread ends with the connection.
        thread::spawn(move || io::copy(&mut output, &mut io::sink()));
        Ok(console)
    }

    /// A magic SysRq request, over the serial line (a break, then the key) and on the keyboard.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn press_sysrq(&self, keyboard: &mut impl Write, key: char) -> Result<()> {
        let mut monitor = self.monitor()?;
        monitor.execute("chardev-send-break", json!({"id": "console"}))?;
        write!(keyboard, "{key}")?;
        let keys = ["alt", "sysrq", &key.to_string()].map(|key| json!({"type": "qcode", "data": key}));
        monitor.execute("send-key", json!({"keys": keys}))?;
        Ok(())
    }

    /// Writes a line to the log of the run.
    pub fn say(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let _ = writeln!(io::stderr(), "[{seconds:6.1} s] {}: {what}", self.name);
    }

    pub(crate) fn monitor(&self) -> Result<Monitor> {
        Monitor::connect(&self.file("qmp.sock"))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Prints what is known about a failure.
    pub(crate) fn report(&self, reason: &str) {
        self.say(&format!("FAILED: {reason}"));
        let mut out = io::stderr();
        for name in ["console.log", "qemu.err", "swtpm.log"] {
            let content = fs::read(self.file(name)).unwrap_or_default();
            let end = &content[content.len().saturating_sub(MAX_PRINTED)..];
            let _ = writeln!(out, "---- {name}\n{}", String::from_utf8_lossy(end));
        }
        let _ = writeln!(out, "---- metadata asked for: {:?}", self.metadata.asked());
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.report("the check panicked");
        }
    }
}
