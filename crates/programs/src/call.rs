use std::fmt;
use std::io;
use std::time::Duration;

use zeroize::Zeroizing;

/// What a program may take unless its call says otherwise.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);
/// How much of the end of each output stream is kept unless the call says otherwise, in bytes.
const DEFAULT_KEPT: usize = 64 * 1024;
/// The most lines of output that an error repeats.
const LAST_LINES: usize = 20;

/// A program to run, with its arguments and limits.
pub struct Call {
    pub(crate) program: &'static str,
    pub(crate) arguments: Vec<String>,
    pub(crate) limit: Duration,
    pub(crate) kept: usize,
    redacted: Vec<Zeroizing<String>>,
}

/// What a program wrote before it ended successfully. Of long streams only the end is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The end of standard output.
    pub stdout: Vec<u8>,
    /// The end of standard error.
    pub stderr: Vec<u8>,
}

/// A program that did not end successfully.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started or waited for.
    #[error("cannot run {program}")]
    Start {
        /// The program's name.
        program: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error("{program} did not end within {limit:?}")]
    TimedOut {
        /// The program's name.
        program: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// It ended with an error.
    #[error("{program} {}: {last_lines}", ending(*.code))]
    Failed {
        /// The program's name.
        program: &'static str,
        /// The exit code; `None` when a signal ended it.
        code: Option<i32>,
        /// The end of its output, without the secrets that the call named.
        last_lines: String,
    },
}

impl Call {
    /// Runs a program that is found through `PATH`.
    #[must_use]
    pub fn new(program: &'static str) -> Self {
        Self {
            program,
            arguments: Vec::new(),
            limit: DEFAULT_LIMIT,
            kept: DEFAULT_KEPT,
            redacted: Vec::new(),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments at the end, in their order.
    #[must_use]
    pub fn args<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets the time after which the program is killed.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Keeps the last `bytes` of each output stream.
    #[must_use]
    pub fn keep(mut self, bytes: usize) -> Self {
        self.kept = bytes;
        self
    }

    /// Replaces a secret text in error messages.
    #[must_use]
    pub fn redact(mut self, secret: &str) -> Self {
        if !secret.is_empty() {
            self.redacted.push(Zeroizing::new(secret.to_owned()));
        }
        self
    }

    /// The program's name.
    #[must_use]
    pub fn program(&self) -> &'static str {
        self.program
    }

    /// The arguments, in order.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The error for a program that ended with this code.
    #[must_use]
    pub fn failed(&self, code: Option<i32>, output: &Output) -> RunError {
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        // Programs report errors on standard error, if they write there at all.
        let text = if stderr.trim().is_empty() { stdout } else { stderr };
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last_lines = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        RunError::Failed {
            program: self.program,
            code,
            last_lines: self.without_secrets(last_lines),
        }
    }

    fn without_secrets(&self, text: String) -> String {
        self.redacted
            .iter()
            .fold(text, |text, secret| text.replace(secret.as_str(), "(redacted)"))
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program, self.arguments.join(" "))
    }
}

fn ending(code: Option<i32>) -> String {
    match code {
        Some(code) => format!("failed with exit code {code}"),
        None => "was killed by a signal".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(call: &Call, stdout: &str, stderr: &str) -> String {
        let output = Output {
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        call.failed(Some(3), &output).to_string()
    }

    #[test]
    fn errors_end_with_the_last_lines() {
        let lines: Vec<String> = (0..100).map(|i| format!("line {i}")).collect();
        let error = check(&Call::new("kubeadm"), "progress", &lines.join("\n"));
        assert!(
            error.starts_with("kubeadm failed with exit code 3: line 80\n"),
            "{error}"
        );
        assert!(error.ends_with("line 99"), "{error}");
    }

    #[test]
    fn standard_output_serves_when_nothing_else_was_said() {
        assert_eq!(
            check(&Call::new("ip"), "no such device", " \n"),
            "ip failed with exit code 3: no such device"
        );
    }

    #[test]
    fn a_program_that_a_signal_killed_is_told_as_such() {
        let output = Output {
            stdout: "half way".into(),
            stderr: Vec::new(),
        };
        let error = Call::new("kubeadm").failed(None, &output).to_string();
        assert_eq!(error, "kubeadm was killed by a signal: half way");
    }

    #[test]
    fn named_secrets_stay_out_of_errors() {
        let call = Call::new("kubeadm").redact("abcdef.0123456789abcdef");
        let error = check(&call, "", "token abcdef.0123456789abcdef is no good");
        assert_eq!(error, "kubeadm failed with exit code 3: token (redacted) is no good");
        let debug = format!("{call:?} {:?}", call.failed(None, &Output::default()));
        assert!(!debug.contains("abcdef.0123"), "{debug}");
    }
}
