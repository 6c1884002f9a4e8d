//! Processes that outlive the command that started them, and that are never mistaken for another.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use atomic_file::Access;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{Context, QemuError};

/// How long a process has between being asked and being made to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a helper may take to write its record.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often a condition without an event is looked at.
pub(crate) const INTERVAL: Duration = Duration::from_millis(10);

/// This program, which starts others for the provider: `constellation internal ...`.
#[derive(Clone, Debug)]
pub struct Helper {
    program: PathBuf,
}

/// Who a process is: a process id is used again, its start time after the same boot is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessRecord {
    pid: i32,
    /// In clock ticks since boot (proc_pid_stat(5), field 22).
    start_time: u64,
    boot_id: String,
}

/// Becomes another program after writing who that is: process id and start time stay the same over `exec`.
///
/// Standard input is the lock of the run folder, which is let go with becoming the program. Returns only if it fails.
pub(crate) fn exec_recorded(record: &Path, program: &OsStr, arguments: &[OsString]) -> io::Error {
    // A session of its own: the terminal's Ctrl-C and its end are not for this process.
    if let Err(error) = rustix::process::setsid() {
        return error.into();
    }
    match ProcessRecord::of_this_process().and_then(|this| this.write(record)) {
        Ok(()) => Command::new(program).args(arguments).stdin(Stdio::null()).exec(),
        Err(error) => error,
    }
}

impl Helper {
    /// Takes the path of the `constellation` program.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// The program and arguments that serve the metadata of a run folder.
    pub(crate) fn metadata(&self, folder: &Path) -> (OsString, Vec<OsString>) {
        let arguments = ["internal".into(), "serve-metadata".into(), folder.into()];
        (self.program.clone().into(), arguments.to_vec())
    }

    /// Starts a program in a folder, its output in a log file there, and returns once it is recorded.
    ///
    /// The new process shares the lock until then: whoever takes it next finds the record.
    pub(crate) fn start(
        &self,
        lock: &File,
        folder: &Path,
        record: &Path,
        log: &Path,
        program: &OsStr,
        arguments: &[OsString],
    ) -> Result<(), QemuError> {
        atomic_file::remove(record).on("remove", record)?;
        let output = File::create(log).on("create", log)?;
        let errors = output.try_clone().on("open", log)?;
        let shared = lock.try_clone().on("share the lock of", folder)?;
        let mut child = Command::new(&self.program)
            .args(["internal", "exec"])
            .arg(record)
            .arg(program)
            .args(arguments)
            .current_dir(folder)
            .stdin(shared)
            .stdout(output)
            .stderr(errors)
            .spawn()
            .on("start", &self.program)?;
        let deadline = Instant::now() + START_LIMIT;
        while !record.exists() {
            if child.try_wait().on("wait for", &self.program)?.is_some() {
                return Err(ended(program, log));
            }
            if Instant::now() > deadline {
                return Err(not_ready(program, START_LIMIT));
            }
            std::thread::sleep(INTERVAL);
        }
        // Somebody has to fetch its exit status as long as this command runs.
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}

/// The program ended instead of doing its work.
pub(crate) fn ended(program: &OsStr, log: &Path) -> QemuError {
    let text = fs::read(log).unwrap_or_default();
    let said = crate::console::last_line(&text).unwrap_or_else(|| "it said nothing".to_owned());
    QemuError::Ended {
        program: program.display().to_string(),
        said,
    }
}

pub(crate) fn not_ready(program: &OsStr, limit: Duration) -> QemuError {
    QemuError::NotReady {
        program: program.display().to_string(),
        seconds: limit.as_secs(),
    }
}

impl ProcessRecord {
    fn of_this_process() -> io::Result<Self> {
        let pid = rustix::process::getpid();
        Ok(Self {
            pid: pid.as_raw_pid(),
            start_time: start_time(pid)?.ok_or_else(|| io::Error::other("this process has no start time"))?,
            boot_id: boot_id()?,
        })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        atomic_file::replace(path, &serde_json::to_vec(self)?, Access::Owner)
    }

    /// The record in a file, if there is one. A damaged one is none: it was never written by [`exec_recorded`].
    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Whether the recorded process runs.
    pub(crate) fn is_running(&self) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return false;
        };
        let same_boot = boot_id().is_ok_and(|boot| boot == self.boot_id);
        same_boot && start_time(pid).is_ok_and(|time| time == Some(self.start_time))
    }

    /// Ends the recorded process, if it runs: politely first.
    pub(crate) fn stop(&self) -> Result<(), QemuError> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(());
        };
        // The descriptor is taken before the check, so the process that is checked is the process that is signalled.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        if !self.is_running() {
            return Ok(());
        }
        for signal in [Signal::TERM, Signal::KILL] {
            // It may end at any time by itself.
            let _ = pidfd_send_signal(&process, signal);
            if ends_within(&process, PATIENCE) {
                return Ok(());
            }
        }
        Err(QemuError::DoesNotEnd(self.pid))
    }
}

fn ends_within(process: &rustix::fd::OwnedFd, limit: Duration) -> bool {
    let timeout = Timespec::try_from(limit).expect("a few seconds fit");
    matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)), Ok(1))
}

/// Field 22 of `/proc/PID/stat`; none if there is no such process or it has ended and only waits to be noticed.
fn start_time(pid: Pid) -> io::Result<Option<u64>> {
    match fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())) {
        Ok(stat) => Ok(parse_stat(&stat)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_stat(stat: &str) -> Option<u64> {
    // The name in parentheses can hold anything; the rest starts with field 3, the state.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    (!["Z", "X"].contains(&state)).then_some(start_time)
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> (std::process::Child, ProcessRecord) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let record = ProcessRecord {
            pid: pid.as_raw_pid(),
            start_time: start_time(pid).unwrap().unwrap(),
            boot_id: boot_id().unwrap(),
        };
        (child, record)
    }

    #[test]
    fn ends_the_recorded_process() {
        let (mut child, record) = sleeper();
        assert!(record.is_running());
        record.stop().unwrap();
        assert!(!record.is_running());
        child.wait().unwrap();
        record.stop().unwrap();
    }

    #[test]
    fn never_ends_another_process_with_the_same_id() {
        let (mut child, record) = sleeper();
        for other in [
            ProcessRecord {
                start_time: record.start_time + 1,
                ..record.clone()
            },
            ProcessRecord {
                boot_id: "an earlier boot".to_owned(),
                ..record.clone()
            },
        ] {
            assert!(!other.is_running());
            other.stop().unwrap();
            assert!(child.try_wait().unwrap().is_none());
        }
        record.stop().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn names_with_parentheses_and_spaces_do_not_confuse() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(&format!("12 (a) b (c) {rest}")), Some(4711));
        assert_eq!(parse_stat(&format!("12 (a) Z{}", &rest[1..])), None);
        assert_eq!(parse_stat(""), None);
    }
}
