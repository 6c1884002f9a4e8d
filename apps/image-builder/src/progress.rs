use std::time::Instant;

/// Reports progress, with the time since the start.
pub(crate) struct Progress {
    start: Instant,
}

impl Progress {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn say(&self, message: &str) {
        terminal::note(&format!("[{:6.1} s] {message}", self.start.elapsed().as_secs_f64()));
    }
}
