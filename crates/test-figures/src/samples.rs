use std::time::Duration;

use anyhow::{Result, ensure};

use crate::Clock;

/// Runs before the first one that is measured.
pub const WARM_UP: usize = 20;

/// How long each of many runs of one thing took. Never empty, in ascending order.
#[derive(Clone, Debug)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Runs something until it is warm, and then measures it this often.
    ///
    /// # Errors
    /// When a run fails.
    pub fn take(clock: Clock, rounds: usize, mut run: impl FnMut() -> Result<()>) -> Result<Self> {
        let mut times = Vec::with_capacity(WARM_UP + rounds);
        for _ in 0..WARM_UP + rounds {
            let start = clock.now();
            run()?;
            times.push(clock.now().saturating_sub(start));
        }
        Self::new(times.split_off(WARM_UP))
    }

    /// The same for something that waits.
    ///
    /// # Errors
    /// When a run fails.
    pub async fn take_async(clock: Clock, rounds: usize, mut run: impl AsyncFnMut() -> Result<()>) -> Result<Self> {
        let mut times = Vec::with_capacity(WARM_UP + rounds);
        for _ in 0..WARM_UP + rounds {
            let start = clock.now();
            run().await?;
            times.push(clock.now().saturating_sub(start));
        }
        Self::new(times.split_off(WARM_UP))
    }

    /// Times that were taken otherwise.
    ///
    /// # Errors
    /// When there are none.
    pub fn new(mut times: Vec<Duration>) -> Result<Self> {
        ensure!(!times.is_empty(), "nothing was measured");
        times.sort_unstable();
        Ok(Self(times))
    }

    /// Half of the runs took no longer.
    #[must_use]
    pub fn p50(&self) -> Duration {
        self.percentile(50)
    }

    /// 99 of 100 runs took no longer.
    #[must_use]
    pub fn p99(&self) -> Duration {
        self.percentile(99)
    }

    /// How many runs fit into a second, one after another.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        1.0 / self.mean().as_secs_f64()
    }

    /// The median of these runs as a multiple of that of others.
    #[must_use]
    pub fn ratio_to(&self, other: &Self) -> f64 {
        self.p50().as_secs_f64() / other.p50().as_secs_f64()
    }

    /// The average run.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let count = u32::try_from(self.0.len()).expect("no bench has so many runs");
        self.0.iter().sum::<Duration>() / count
    }

    /// The nearest rank: the smallest time that this part of all runs did not exceed.
    fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0[rank - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times = |count| (1..=count).rev().map(Duration::from_millis).collect();
        let samples = Samples::new(times(200)).unwrap();
        assert_eq!(samples.p50(), Duration::from_millis(100));
        assert_eq!(samples.p99(), Duration::from_millis(198));
        let one = Samples::new(times(1)).unwrap();
        assert_eq!((one.p50(), one.p99()), (one.mean(), one.mean()));
        assert!(Samples::new(Vec::new()).is_err());
    }

    #[test]
    fn only_warm_runs_are_measured() {
        let mut runs = 0;
        let samples = Samples::take(Clock::Wall, 3, || {
            runs += 1;
            Ok(())
        });
        assert_eq!((samples.unwrap().0.len(), runs), (3, WARM_UP + 3));
    }
}
