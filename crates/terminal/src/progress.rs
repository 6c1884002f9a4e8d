//! Steps with elapsed time: one changing line on a terminal, two lines otherwise.

use std::pin::pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::{is_terminal, note, redraw, shown};

/// The clock of one command.
pub struct Progress {
    start: Instant,
    terminal: bool,
    finished: Mutex<Vec<Finished>>,
}

/// What a step is currently doing.
pub struct Step<'a> {
    progress: &'a Progress,
    title: String,
    start: Instant,
    detail: Mutex<String>,
}

#[derive(Clone, Serialize)]
struct Finished {
    step: String,
    seconds: f64,
    succeeded: bool,
}

#[derive(Serialize)]
struct Timings {
    total_seconds: f64,
    steps: Vec<Finished>,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            terminal: is_terminal(),
            finished: Mutex::default(),
        }
    }

    /// Announces a step, runs it and reports how long it took.
    ///
    /// # Errors
    /// Those of the step.
    pub async fn step<T>(&self, title: &str, run: impl AsyncFnOnce(&Step<'_>) -> Result<T>) -> Result<T> {
        let step = self.begin(title);
        if !self.terminal {
            self.line(title);
        }
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut running = pin!(run(&step));
        let result = loop {
            tokio::select! {
                result = running.as_mut() => break result,
                _ = tick.tick() => step.draw(),
            }
        };
        step.finish(result.is_ok());
        result
    }

    /// The same for a step that blocks; nothing is drawn while it runs.
    ///
    /// # Errors
    /// Those of the step.
    pub fn step_blocking<T>(&self, title: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        self.line(title);
        let step = self.begin(title);
        let result = run();
        step.finish(result.is_ok());
        result
    }

    fn begin(&self, title: &str) -> Step<'_> {
        Step {
            progress: self,
            title: title.to_owned(),
            start: Instant::now(),
            detail: Mutex::default(),
        }
    }

    /// A line between the steps.
    pub fn line(&self, text: &str) {
        if self.terminal {
            self.redraw("");
        }
        note(&format!("[{:>8}] {text}", seconds(self.start.elapsed())));
    }

    fn redraw(&self, text: &str) {
        // No one misses it on a closed terminal.
        let _ = redraw(text);
    }

    /// How long each step took, as JSON.
    #[must_use]
    pub fn timings(&self) -> String {
        let timings = Timings {
            total_seconds: rounded(self.start.elapsed()),
            steps: self.finished().clone(),
        };
        serde_json::to_string_pretty(&timings).expect("numbers and names are JSON") + "\n"
    }

    /// How long each step took, as lines for people.
    #[must_use]
    pub fn summary(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .finished()
            .iter()
            .map(|finished| format!("{:>8.1} s  {}", finished.seconds, finished.step))
            .collect();
        lines.push(format!("{:>8.1} s  total", rounded(self.start.elapsed())));
        lines
    }

    fn finished(&self) -> std::sync::MutexGuard<'_, Vec<Finished>> {
        self.finished.lock().expect("nothing panics while it is held")
    }
}

impl Step<'_> {
    /// Shows what the step is currently doing, in whoever's words.
    pub fn detail(&self, text: &str) {
        let text = shown(text);
        let mut detail = self.detail.lock().expect("nothing panics while it is held");
        if *detail == text {
            return;
        }
        detail.clone_from(&text);
        drop(detail);
        if self.progress.terminal {
            self.draw();
        } else {
            self.progress.line(&format!("  {text}"));
        }
    }

    fn draw(&self) {
        if self.progress.terminal {
            let elapsed = seconds(self.progress.start.elapsed());
            let detail = self.detail.lock().expect("nothing panics while it is held");
            self.progress
                .redraw(&format!("[{elapsed:>8}] {} ... {detail}", self.title));
        }
    }

    fn finish(&self, good: bool) {
        let elapsed = self.start.elapsed();
        let how = if good { "done in" } else { "failed after" };
        self.progress
            .line(&format!("{}: {how} {}", self.title, seconds(elapsed)));
        self.progress.finished().push(Finished {
            step: self.title.clone(),
            seconds: rounded(elapsed),
            succeeded: good,
        });
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn steps_are_timed_in_order_also_when_they_fail() {
        let progress = Progress::start();
        progress.step("first", async |_| Ok(())).await.unwrap();
        progress
            .step("second", async |_| Err::<(), _>(anyhow::anyhow!("no")))
            .await
            .unwrap_err();
        let timings: serde_json::Value = serde_json::from_str(&progress.timings()).unwrap();
        let steps: Vec<_> = timings["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| (step["step"].as_str().unwrap(), step["succeeded"].as_bool().unwrap()))
            .collect();
        assert_eq!(steps, [("first", true), ("second", false)]);
    }
}
