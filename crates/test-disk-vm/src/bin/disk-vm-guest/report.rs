use std::io::{self, Write};
use std::time::Instant;

use anyhow::Result;

/// What the checks found, on the console.
pub(crate) struct Report {
    start: Instant,
}

impl Report {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Runs one check and prints how it went.
    pub(crate) fn check(&mut self, name: &str, run: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        let line = match run() {
            Ok(()) => format!("CHECK passed {name} {:.2} s", start.elapsed().as_secs_f64()),
            Err(error) => format!("CHECK failed {name}: {error:#}"),
        };
        self.say(&line);
    }

    /// Says that nothing was left out.
    pub(crate) fn end(&self) {
        self.say(&format!("chapter took {:.1} s", self.start.elapsed().as_secs_f64()));
        self.say("END");
    }

    pub(crate) fn say(&self, line: &str) {
        let mut out = io::stdout();
        let _ = writeln!(out, "{line}");
        let _ = out.flush();
    }
}
