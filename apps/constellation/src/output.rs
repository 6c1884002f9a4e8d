//! The output of commands, and the question they ask.

use std::io::IsTerminal;

use anyhow::{Context, Result, bail};
pub(crate) use terminal::{note, print, redraw, say, shown};

/// Asks for confirmation before something that the user may not have meant.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("cannot ask for confirmation: stdin is not a terminal; pass --yes ({question})");
    }
    for _ in 0..3 {
        redraw(&format!("{question} [y/n]: ")).context("cannot ask for confirmation; pass --yes")?;
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
    bail!("cancelled: nothing was changed")
}
