use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use polling::{Failed, Schedule};
use tokio::net::{TcpStream, UnixStream};

const INTERVAL: Duration = Duration::from_millis(20);
/// Also on a machine that compiles meanwhile.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Where a service takes calls.
pub(crate) enum Listens {
    /// At this `host:port`.
    Tcp(String),
    /// At a Unix socket.
    Unix(PathBuf),
}

impl Listens {
    async fn connect(&self) -> io::Result<()> {
        match self {
            Self::Tcp(address) => TcpStream::connect(address).await.map(drop),
            Self::Unix(socket) => UnixStream::connect(socket).await.map(drop),
        }
    }
}

/// A running service. Dropping it ends it.
pub struct ServiceProcess {
    child: Child,
    log: PathBuf,
}

impl ServiceProcess {
    /// Starts a service with what all of them need, and waits until it listens.
    pub(crate) async fn start(mut command: Command, listens: &Listens, log: PathBuf) -> Result<Self> {
        command.args(["--health-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]);
        Self::start_program(command, listens, log).await
    }

    /// Starts a program, and waits until it listens.
    pub(crate) async fn start_program(mut command: Command, listens: &Listens, log: PathBuf) -> Result<Self> {
        command.stdin(Stdio::null()).stderr(File::create(&log)?);
        let child = command.spawn().with_context(|| {
            format!("{command:?}: is it built? `make test` and `make bench` build all programs first")
        })?;
        let mut process = Self { child, log };
        process.wait_until_listening(listens).await?;
        Ok(process)
    }

    async fn wait_until_listening(&mut self, listens: &Listens) -> Result<()> {
        let child = &mut self.child;
        let attempt = || {
            let ended = child.try_wait();
            async move {
                match (listens.connect().await, ended) {
                    (Ok(_), _) => Ok(()),
                    (Err(error), Ok(None)) => Err(Failed::Retry(error.to_string())),
                    (Err(_), Ok(Some(status))) => Err(Failed::Stop(status.to_string())),
                    (Err(_), Err(error)) => Err(Failed::Stop(error.to_string())),
                }
            }
        };
        let listening = Schedule::every(INTERVAL, START_LIMIT).poll(attempt, |_, _| {}).await;
        listening.map_err(|error| {
            let last = error.into_last().unwrap_or_default();
            anyhow!("the service does not listen ({last}); its log:\n{}", self.log())
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn terminate(&mut self) -> Result<ExitStatus> {
        let asked = Command::new("kill").args(["-TERM", &self.id().to_string()]).status()?;
        ensure!(asked.success(), "the service cannot be told to end: {asked}");
        Ok(self.child.wait()?)
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must be reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Checks that a program which ended at once said one error, with all of this in it.
///
/// # Panics
/// When it succeeded, or said something else.
pub fn must_say_one_error(output: &Output, named: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{named:?}");
    assert!(named.iter().all(|name| error.contains(name)), "{named:?}: {error}");
    let errors = error.lines().filter(|line| line.to_lowercase().starts_with("error:"));
    assert_eq!(errors.count(), 1, "{error}");
}
