use std::io::Write;
use std::time::Instant;

/// Progress for people: one line for each step, with the time since the start.
pub(crate) struct Console {
    start: Instant,
}

impl Console {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Prints one line. Failing to write to the console is not a reason to stop.
    pub(crate) fn say(&self, line: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        let _ = writeln!(std::io::stdout(), "disk-mapper {seconds:7.2}s  {line}");
    }
}
