//! Processes that outlive the command that started them, and that are never mistaken for other processes.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use atomic_file::Access;
use error_report::User;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{Context, QemuError};
use crate::workspace::workspace_of;

/// How long a process has to exit before it is killed.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How long a process that looks like a zombie may take until it is gone.
const ENDING_LIMIT: Duration = Duration::from_secs(5);
/// How long a helper may take to write its record.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often to check a condition that sends no event.
pub(crate) const INTERVAL: Duration = Duration::from_millis(10);

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This program, which starts others for the provider, as `constellation internal ...`.
#[derive(Clone, Debug)]
pub struct Helper {
    program: PathBuf,
}

/// The identity of a process: its id can be reused, but not with the same start time after the same boot.
///
/// A copy of the record names the same process. The process belongs to the folder in which it was started and works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessRecord {
    pid: i32,
    /// In clock ticks since boot (proc_pid_stat(5), field 22).
    start_time: u64,
    boot_id: String,
}

/// Becomes another program after recording its identity: process id and start time stay the same across `exec`.
///
/// Standard input is the lock of the run folder, which is released by becoming the program. Returns only on failure.
pub(crate) fn exec_recorded(record: &Path, program: &OsStr, arguments: &[OsString]) -> io::Error {
    // A separate session: the terminal's Ctrl-C and hang-up are not for this process.
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

    /// The program and arguments that serve the metadata of the run folder they are started in, wherever that is moved.
    pub(crate) fn metadata(&self) -> (OsString, Vec<OsString>) {
        let arguments = ["internal", "serve-metadata", "."].map(OsString::from);
        (self.program.clone().into(), arguments.to_vec())
    }

    /// Starts a program in a folder, its output in a log file and its record there, and returns once it is recorded.
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
        // Its exit status has to be collected as long as this command runs.
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}

/// The program exited instead of doing its work.
pub(crate) fn ended(program: &OsStr, log: &Path) -> QemuError {
    let text = fs::read(log).unwrap_or_default();
    let said = crate::console::last_line(&text).unwrap_or_else(|| "it printed no message".to_owned());
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

impl fmt::Display for ProcessRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pid,
            start_time,
            boot_id,
        } = self;
        write!(f, "{boot_id}/{pid}/{start_time}")
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

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        atomic_file::replace(path, &serde_json::to_vec(self)?, Access::Owner)
    }

    /// The record in a file, if there is one. A damaged one is none: it was never written by [`exec_recorded`].
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, QemuError> {
        match fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).on("read", path),
        }
    }

    /// Whether the recorded process runs in the folder of its record.
    ///
    /// # Errors
    /// When the process works in another folder, which makes this one a copy.
    pub(crate) fn is_running(&self, folder: &Path) -> Result<bool, QemuError> {
        Ok(self.state(folder)? == State::Running)
    }

    fn state(&self, folder: &Path) -> Result<State, QemuError> {
        // Looked up first: a process that exists after that is the one whose folder it was.
        let place = Place::of(&self.folder(), folder);
        if !self.exists()? {
            return Ok(State::Ended);
        }
        match place {
            Ok(Place::Here) => Ok(State::Running),
            Ok(Place::Removed) => Ok(State::Orphaned),
            Ok(Place::Elsewhere(original)) => Err(QemuError::Copy {
                workspace: workspace_of(folder),
                original: workspace_of(&original),
            }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(self.not_permitted()),
            Err(error) => Err(error).on("inspect", self.folder()),
        }
    }

    /// Whether the recorded process exists. That it cannot be seen does not mean that it ended.
    fn exists(&self) -> Result<bool, QemuError> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(false);
        };
        if boot_id().on("read", BOOT_ID)? != self.boot_id {
            return Ok(false);
        }
        if let Some(time) = start_time(pid).on("inspect", self.folder())? {
            return Ok(time == self.start_time);
        }
        // It has ended, or `/proc` is mounted so that it hides processes of others (`hidepid`, proc(5)).
        match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => Ok(false),
            // One that is ending looks like a zombie while its other threads give back gigabytes.
            Ok(process) if ends_within(&process, ENDING_LIMIT) => Ok(false),
            Ok(_) => Err(Errno::ACCESS).on("inspect", self.folder()),
            Err(error) => Err(error).on("inspect", self.folder()),
        }
    }

    fn folder(&self) -> PathBuf {
        format!("/proc/{}", self.pid).into()
    }

    /// Ends the recorded process, if it runs: politely first.
    ///
    /// # Errors
    /// When it cannot be ended, or works in another folder than that of its record.
    pub(crate) fn stop(&self, folder: &Path) -> Result<(), QemuError> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(());
        };
        // The descriptor is taken before the check, so the process that is checked is the process that is signalled.
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => return Ok(()),
            // The id may be that of another process's thread by now. Otherwise it is not known whether ours has ended.
            Err(error) if self.exists()? => return Err(error).on("open process", self.folder()),
            Err(_) => return Ok(()),
        };
        if self.state(folder)? == State::Ended {
            return Ok(());
        }
        for signal in [Signal::TERM, Signal::KILL] {
            match pidfd_send_signal(&process, signal) {
                Err(Errno::PERM) => return Err(self.not_permitted()),
                // It may end at any time by itself.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error).on("end process", self.folder()),
            }
            if ends_within(&process, END_LIMIT) {
                return Ok(());
            }
        }
        Err(QemuError::DoesNotEnd(self.pid))
    }

    fn not_permitted(&self) -> QemuError {
        let folder = self.folder();
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        let program = name.trim().to_owned();
        match User::of(&folder) {
            Some(owner) => QemuError::NotPermitted {
                pid: self.pid,
                program,
                owner,
            },
            None => QemuError::Io {
                action: "end process",
                path: folder,
                source: Errno::PERM.into(),
            },
        }
    }
}

/// What became of a recorded process.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Ended,
    Running,
    /// It runs, but the folder in which it worked was removed: nobody can use it any more.
    Orphaned,
}

/// Where a process works, as seen from the folder of its record.
enum Place {
    Here,
    Elsewhere(PathBuf),
    Removed,
}

impl Place {
    /// Takes the process's folder in `/proc`.
    fn of(process: &Path, folder: &Path) -> io::Result<Self> {
        let link = process.join("cwd");
        let working = match fs::metadata(&link) {
            // A process that exits has no folder any more. It does no harm to end it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Here),
            metadata => metadata?,
        };
        let recorded = fs::metadata(folder)?;
        if (working.dev(), working.ino()) == (recorded.dev(), recorded.ino()) {
            return Ok(Self::Here);
        }
        let path = fs::read_link(&link)?;
        // The kernel's mark on the path of a removed folder. No program is started in a folder of such a name.
        Ok(if path.as_os_str().as_bytes().ends_with(b" (deleted)") {
            Self::Removed
        } else {
            Self::Elsewhere(path)
        })
    }
}

fn ends_within(process: &rustix::fd::OwnedFd, limit: Duration) -> bool {
    let timeout = Timespec::try_from(limit).expect("a few seconds fit");
    matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)), Ok(1))
}

/// Field 22 of `/proc/PID/stat`; `None` if there is no such process, or if it has exited and is only waiting to be reaped.
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
    Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Where tests run, and with them the programs that they start.
    const HERE: &str = ".";

    fn sleeper() -> (std::process::Child, ProcessRecord) {
        sleeper_in(Path::new(HERE))
    }

    pub(crate) fn sleeper_in(folder: &Path) -> (std::process::Child, ProcessRecord) {
        let child = Command::new("sleep").arg("1000").current_dir(folder).spawn().unwrap();
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
        let here = Path::new(HERE);
        assert!(record.is_running(here).unwrap());
        record.stop(here).unwrap();
        assert!(!record.is_running(here).unwrap());
        child.wait().unwrap();
        record.stop(here).unwrap();
    }

    #[test]
    fn a_process_of_the_folder_from_which_the_record_was_copied_is_neither_used_nor_ended() {
        let (original, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut child, record) = sleeper_in(original.path());
        for result in [record.is_running(copy.path()).map(drop), record.stop(copy.path())] {
            assert!(matches!(result, Err(QemuError::Copy { .. })), "{result:?}");
        }
        assert!(child.try_wait().unwrap().is_none());
        let moved = copy.path().join("moved");
        fs::rename(original.path(), &moved).unwrap();
        assert!(record.is_running(&moved).unwrap());
        record.stop(&moved).unwrap();
        child.wait().unwrap();
    }

    /// As after a move to another file system, which is a copy and a removal.
    #[test]
    fn a_process_whose_folder_was_removed_does_not_count_as_running_and_is_ended() {
        let (original, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut child, record) = sleeper_in(original.path());
        original.close().unwrap();
        assert!(!record.is_running(copy.path()).unwrap());
        assert!(child.try_wait().unwrap().is_none());
        record.stop(copy.path()).unwrap();
        child.wait().unwrap();
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
            assert!(!other.is_running(Path::new(HERE)).unwrap());
            other.stop(Path::new(HERE)).unwrap();
            assert!(child.try_wait().unwrap().is_none());
        }
        record.stop(Path::new(HERE)).unwrap();
        child.wait().unwrap();
    }

    /// Of a thread's id the kernel gives no descriptor. The same happens when there are too many open files.
    #[test]
    fn a_process_that_cannot_be_opened_is_not_taken_for_ended() {
        let (send, receive) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send.send(rustix::thread::gettid()).unwrap();
            let _ = ended.recv();
        });
        let id = receive.recv().unwrap();
        let record = ProcessRecord {
            pid: id.as_raw_pid(),
            start_time: start_time(id).unwrap().unwrap(),
            boot_id: boot_id().unwrap(),
        };
        let error = record.stop(Path::new(HERE)).unwrap_err();
        assert!(
            matches!(
                error,
                QemuError::Io {
                    action: "open process",
                    ..
                }
            ),
            "{error}"
        );
        // The thread of a process that is not ours: the id was used again.
        let other = ProcessRecord {
            start_time: record.start_time + 1,
            ..record
        };
        other.stop(Path::new(HERE)).unwrap();
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ProcessRecord::read(&folder.path().join("none")).unwrap().is_none());
        assert!(ProcessRecord::read(folder.path()).is_err());
    }

    #[test]
    fn names_with_parentheses_and_spaces_do_not_confuse() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(&format!("12 (a) b (c) {rest}")), Some(4711));
        assert_eq!(parse_stat(&format!("12 (a) Z{}", &rest[1..])), None);
        assert_eq!(parse_stat(""), None);
    }
}
