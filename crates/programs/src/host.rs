use std::io;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};

use tokio::process::Command;
use tokio::time::timeout;

use crate::tail::read_tail;
use crate::{Call, Output, RunError};

/// A running program.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Output, RunError>> + Send + 'a>>;

/// Runs programs of the node, or in tests a stand-in for them.
pub trait Programs: Send + Sync {
    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it cannot be started, takes too long or fails.
    ///
    /// # Cancel safety
    /// Dropping the future ends the program.
    fn run<'a>(&'a self, call: &'a Call) -> Running<'a>;
}

/// Runs the programs of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostPrograms;

impl Programs for HostPrograms {
    fn run<'a>(&'a self, call: &'a Call) -> Running<'a> {
        Box::pin(async move {
            let (status, output) = timeout(call.limit, run(call))
                .await
                .map_err(|_| RunError::TimedOut {
                    program: call.program,
                    limit: call.limit,
                })?
                .map_err(|source| RunError::Start {
                    program: call.program,
                    source,
                })?;
            if status.success() {
                Ok(output)
            } else {
                Err(call.failed(status.code(), &output))
            }
        })
    }
}

async fn run(call: &Call) -> io::Result<(ExitStatus, Output)> {
    let mut child = Command::new(call.program)
        .args(&call.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().expect("standard output is piped");
    let stderr = child.stderr.take().expect("standard error is piped");
    let (status, stdout, stderr) =
        tokio::try_join!(child.wait(), read_tail(stdout, call.kept), read_tail(stderr, call.kept))?;
    Ok((status, Output { stdout, stderr }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn check(call: Call) -> Result<Output, RunError> {
        HostPrograms.run(&call).await
    }

    #[tokio::test]
    async fn output_is_returned() {
        let output = check(Call::new("printf").args(["%s", "hello"])).await.unwrap();
        assert_eq!(output.stdout, b"hello");
    }

    #[tokio::test]
    async fn exit_codes_are_errors() {
        let error = check(Call::new("sh").args(["-c", "echo broken >&2; exit 7"]))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "sh failed with exit code 7: broken");
    }

    #[tokio::test]
    async fn programs_that_hang_are_ended() {
        let call = Call::new("sleep").arg("600").within(Duration::from_millis(20));
        assert!(matches!(check(call).await, Err(RunError::TimedOut { .. })));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = check(Call::new("no-such-program")).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot run no-such-program");
    }
}
