//! Progress of long commands on standard error, with elapsed times.

use std::time::{Duration, Instant};

use anyhow::Result;

/// The clock of one command.
pub(crate) struct Progress {
    start: Instant,
}

impl Progress {
    /// Starts the clock.
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Announces a step, runs it and reports how long it took.
    pub(crate) fn step<T>(&self, what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        self.line(what);
        let start = Instant::now();
        let result = run()?;
        self.line(&format!("  done in {}", seconds(start.elapsed())));
        Ok(result)
    }

    /// Reports how long the command took.
    pub(crate) fn done(&self) {
        self.line("finished");
    }

    fn line(&self, text: &str) {
        terminal::note(&format!("[{:>7}] {text}", seconds(self.start.elapsed())));
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
