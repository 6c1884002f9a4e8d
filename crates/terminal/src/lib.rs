//! What a command says, to a person or to a pipe. Nothing else writes to standard output or standard error.
//!
//! A reader may go away and a disk may be full, so no write panics:
//!
//! - [`print()`] is for commands whose result is their output. If it cannot be written, the command fails.
//! - [`say`] and [`note`] are for commands that do something else. They continue when no one reads their output any more.
//!
//! Nodes, the API server and the platform choose some of what is written, so nothing that controls a terminal is passed on, and what
//! must stay on its line goes through [`shown`].

mod progress;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use anyhow::Error;
use clap::Parser;
use clap::error::ErrorKind;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::stdio::{stderr, stdout};

pub use progress::{Progress, Step};

/// What a shell reports for a process that SIGPIPE (13) ended; other programs in a pipeline end that way.
const SIGPIPE_EXIT: u8 = 128 + 13;
/// How much of someone else's text is shown, in characters.
const MAX_SHOWN: usize = 2000;

/// Standard output cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct PrintError(#[source] io::Error);

/// Writes a line of the result.
///
/// # Errors
/// When it cannot be written; [`end`] turns this into the right exit code.
pub fn print(line: &str) -> Result<(), PrintError> {
    write(stdout(), &format!("{}\n", harmless(line))).map_err(PrintError)
}

/// Writes a line for a person to standard output, if anybody reads it.
pub fn say(line: &str) {
    let _ = print(line);
}

/// Writes a line for a person to standard error, if anybody reads it.
pub fn note(line: &str) {
    let _ = write(stderr(), &format!("{}\n", harmless(line)));
}

/// Replaces the current line of the terminal at standard error.
///
/// # Errors
/// When it cannot be written: a question must not wait for an answer that no one can give.
pub fn redraw(line: &str) -> io::Result<()> {
    write(stderr(), &format!("\r\x1b[K{}", harmless(line)))
}

/// Someone else's text as part of a line: it cannot end the line, and only its beginning is kept.
#[must_use]
pub fn shown(text: &str) -> String {
    let harmless = |c| if c == '\n' || controls(c) { ' ' } else { c };
    text.chars().take(MAX_SHOWN).map(harmless).collect()
}

/// Text of several lines.
fn harmless(text: &str) -> String {
    let harmless = |c| if c != '\n' && controls(c) { ' ' } else { c };
    text.chars().map(harmless).collect()
}

/// Whether a character does something to a terminal instead of being shown: a control character (ECMA-48 sections 5.2 and 5.3), a
/// line or paragraph separator, or one that changes the direction of text (Unicode's property `Bidi_Control`). A tab is harmless.
fn controls(c: char) -> bool {
    let is_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() && c != '\t' || matches!(c, '\u{2028}' | '\u{2029}') || is_direction
}

/// Whether a person reads standard error.
#[must_use]
pub fn is_terminal() -> bool {
    rustix::termios::isatty(stderr())
}

/// Parses a command line, whose first word is the name of the program.
///
/// # Errors
/// The exit code, after an error or help was shown instead.
pub fn parse<P: Parser>(arguments: impl Iterator<Item = OsString>) -> Result<P, ExitCode> {
    let arguments: Vec<_> = arguments.collect();
    P::try_parse_from(&arguments).map_err(|shown| {
        let code = ExitCode::from(u8::try_from(shown.exit_code()).expect("clap exits with 0 or 2"));
        // The parser's own text does not say which argument.
        if shown.kind() == ErrorKind::InvalidUtf8
            && let Some(argument) = arguments.iter().find(|argument| argument.to_str().is_none())
        {
            note(&format!("error: the argument {argument:?} is not valid UTF-8"));
            return code;
        }
        match shown.print() {
            Err(error) if !shown.use_stderr() => {
                end(Err(PrintError(error).into()), |error| format!("error: {error:#}"))
            }
            _ => code,
        }
    })
}

/// The exit code of a command. Its error is shown, unless it is that the reader of the result went away.
pub fn end(result: Result<ExitCode, Error>, render: impl FnOnce(&Error) -> String) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::from(SIGPIPE_EXIT),
        Err(error) => {
            note(&render(&error));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    let print = error.chain().find_map(|cause| cause.downcast_ref::<PrintError>());
    print.is_some_and(|PrintError(cause)| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes all of it at once, past the buffers of the standard library: nothing is left to be written at exit, where errors get lost.
fn write(to: BorrowedFd<'_>, text: &str) -> io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            // Another program that shares the terminal or pipe made it non-blocking.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&to, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b[2J\u{9b}2J\x07\r\u{202e}\u{2066}\u{2028}\u{7f}b\tc\nd\u{e9}";

    #[test]
    fn nothing_that_controls_a_terminal_is_passed_on() {
        assert_eq!(harmless(HOSTILE), "a [2J 2J      b\tc\nd\u{e9}");
    }

    #[test]
    fn someone_elses_text_stays_on_one_line_and_ends() {
        assert_eq!(shown(HOSTILE), "a [2J 2J      b\tc d\u{e9}");
        assert_eq!(shown(&"x".repeat(1 << 20)).len(), MAX_SHOWN);
    }
}
