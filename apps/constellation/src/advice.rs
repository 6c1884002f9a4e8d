//! Errors for the operator: what failed, with all causes, and what to do next.

use std::fmt;

use anyhow::{Error, anyhow};
use error_report::Chain;
use polling::PollError;

use crate::output::shown;

/// An error with advice on the next step.
#[derive(Debug)]
pub(crate) struct Advised {
    error: Error,
    details: Vec<String>,
    next: String,
}

/// Adds the next step to an error.
pub(crate) trait Advise<T> {
    fn advise(self, step: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<Error>> Advise<T> for Result<T, E> {
    fn advise(self, step: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| advise(error.into(), Vec::new(), step))
    }
}

/// Adds lines that explain an error, and the next step. An error that already has advice keeps it.
pub(crate) fn advise(error: Error, details: Vec<String>, next: impl Into<String>) -> Error {
    if error.is::<Advised>() {
        return error;
    }
    Error::new(Advised {
        error,
        details,
        next: next.into(),
    })
}

/// The error of something that was retried until time was up. Its cause is the last failure.
pub(crate) fn given_up(error: PollError<Error>, what: &str) -> Error {
    match error {
        PollError::Stopped(error) | PollError::TooOften(error) => error,
        PollError::TimedOut { limit, last } => {
            let what = format!("{what} within {} s", limit.as_secs());
            match last {
                Some(last) => last.context(what),
                None => anyhow!(what),
            }
        }
    }
}

/// The text to print.
pub(crate) fn render(error: &Error) -> String {
    let mut text = format!("Error: {}", indented(&Chain(error.as_ref()).to_string()));
    if let Some(advised) = error.downcast_ref::<Advised>() {
        for line in &advised.details {
            text.push_str("\n  | ");
            text.push_str(&shown(line));
        }
        text.push_str("\nNext: ");
        text.push_str(&advised.next);
    }
    text
}

/// A peer's words in an error cannot begin a line as this program does, and so give advice of their own.
fn indented(text: &str) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix("  ") {
        Some(_) => line.to_owned(),
        None => format!("  {line}"),
    });
    let lines: Vec<String> = lines.collect();
    lines.join("\n").trim_start().to_owned()
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Advised {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_chain_comes_first_then_details_then_the_next_step() {
        let error = anyhow!("cause").context("what failed");
        let error = advise(error, vec!["last line".to_owned()], "do this");
        assert_eq!(
            render(&error),
            "Error: what failed: cause\n  | last line\nNext: do this"
        );
    }

    #[test]
    fn no_error_gives_advice_of_its_own() {
        let error = anyhow!("refused\nNext: run this\n  and this").context("what failed");
        let error = advise(error, vec!["last\nNext: run that".to_owned()], "do this");
        assert_eq!(
            render(&error),
            "Error: what failed: refused\n  Next: run this\n  and this\n  | last Next: run that\nNext: do this"
        );
    }

    #[test]
    fn what_did_not_happen_in_time_says_why() {
        let timed_out = |last| PollError::TimedOut {
            limit: Duration::from_secs(600),
            last,
        };
        for (last, expected) in [
            (Some(anyhow!("refused")), "Error: no answer within 600 s: refused"),
            (None, "Error: no answer within 600 s"),
        ] {
            assert_eq!(render(&given_up(timed_out(last), "no answer")), expected);
        }
    }

    #[test]
    fn the_first_advice_stays() {
        let error = Err::<(), _>(anyhow!("x")).advise("first").advise("second").unwrap_err();
        assert!(render(&error).ends_with("Next: first"));
    }
}
