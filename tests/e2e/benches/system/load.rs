//! Requests one after another, and side by side.

use std::time::{Duration, Instant};

use anyhow::Result;
use test_figures::{Samples, Table, processor_time, rate, time};
use tokio::task::JoinSet;

/// How many ask at once where a rate under load is measured.
pub(crate) const CALLERS: usize = 8;

/// What one kind of request costs.
pub(crate) struct Load {
    /// One after another.
    pub(crate) alone: Samples,
    /// How many were answered per second while several asked at once.
    pub(crate) together: Option<f64>,
    /// The processor time of the service for each.
    pub(crate) each: Option<Duration>,
}

impl Load {
    pub(crate) const COLUMNS: [&'static str; 5] = ["p50", "p99", "per s", "per s, 8", "CPU each"];

    pub(crate) fn write(&self, name: &str, table: &mut Table) {
        let none = || "-".to_owned();
        let together = self.together.map_or_else(none, rate);
        table.samples(name, &self.alone, [together, self.each.map_or_else(none, time)]);
    }
}

/// The processor time of a service from here on.
pub(crate) struct Meter {
    process: u32,
    start: Duration,
}

impl Meter {
    pub(crate) fn start(process: u32) -> Result<Self> {
        let start = processor_time(process)?;
        Ok(Self { process, start })
    }

    pub(crate) fn each(&self, requests: usize) -> Result<Duration> {
        let used = processor_time(self.process)?.saturating_sub(self.start);
        Ok(used / u32::try_from(requests)?)
    }
}

/// How many requests per second are answered to callers that each send several, one after another.
#[expect(clippy::cast_precision_loss, reason = "no one sends 2^53 requests")]
pub(crate) async fn side_by_side<F>(requests_of_each: usize, callers: impl IntoIterator<Item = F>) -> Result<f64>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let start = Instant::now();
    let mut running: JoinSet<_> = callers.into_iter().collect();
    let requests = running.len() * requests_of_each;
    while let Some(caller) = running.join_next().await {
        caller??;
    }
    Ok(requests as f64 / start.elapsed().as_secs_f64())
}
