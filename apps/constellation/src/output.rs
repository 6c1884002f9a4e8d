//! The only places that print.

use std::io::{IsTerminal, Write};

use anyhow::{Result, bail};

/// A line of the result.
#[expect(clippy::print_stdout, reason = "the result is what the command is for")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// A line about how it goes.
#[expect(clippy::print_stderr, reason = "for the person at the terminal")]
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Replaces the current line of the terminal.
pub(crate) fn redraw(text: &str) {
    // Who closed the terminal does not miss it.
    let _ = write!(std::io::stderr(), "\r\x1b[K{text}").and_then(|()| std::io::stderr().flush());
}

/// Asks before something happens that the user may not have meant.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("nobody can be asked, because standard input is no terminal; with --yes nothing is asked ({question})");
    }
    for _ in 0..3 {
        redraw(&format!("{question} [y/n]: "));
        let mut answer = String::new();
        if std::io::stdin().read_line(&mut answer)? == 0 {
            break;
        }
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => return Ok(()),
            "n" | "no" => break,
            _ => {}
        }
    }
    bail!("nothing was done: the question was not answered with yes")
}
