//! Tries something again until it succeeds, it cannot succeed any more, or time is up.
//!
//! # Cancel safety
//! Dropping [`Schedule::poll`] or [`poll_endlessly`] drops the attempt that runs. The same happens to it when time is up.

use std::fmt;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep, timeout_at};

/// How long something is tried, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    limit: Duration,
    first_delay: Duration,
    longest_delay: Duration,
    jitter: bool,
    attempts: Option<usize>,
}

/// An attempt that failed.
#[derive(Debug)]
pub enum Failed<E> {
    /// The next one may succeed.
    Retry(E),
    /// No other attempt is made.
    Stop(E),
}

/// Why polling ended without a success.
#[derive(Debug)]
pub enum PollError<E> {
    /// An attempt failed for good.
    Stopped(E),
    /// There were as many attempts as there may be; this is why the last one failed.
    TooOften(E),
    /// Time is up.
    TimedOut {
        /// The time there was.
        limit: Duration,
        /// Why the last attempt that ended failed, if one ended.
        last: Option<E>,
    },
}

impl Schedule {
    /// Tries for so long, with this delay after each attempt.
    #[must_use]
    pub const fn every(delay: Duration, limit: Duration) -> Self {
        Self {
            limit,
            first_delay: delay,
            longest_delay: delay,
            jitter: false,
            attempts: None,
        }
    }

    /// Tries for so long; each delay is twice the one before, up to the longest. Delays are spread at random, so that
    /// those who fail together do not come back together.
    #[must_use]
    pub const fn backing_off(first_delay: Duration, longest_delay: Duration, limit: Duration) -> Self {
        Self {
            limit,
            first_delay,
            longest_delay,
            jitter: true,
            attempts: None,
        }
    }

    /// Makes no more attempts than these, the first one included.
    #[must_use]
    pub const fn at_most(mut self, attempts: usize) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// Makes attempts until one succeeds or fails for good, or time is up. `waiting` is told why an attempt failed and how
    /// long the delay before the next one is.
    ///
    /// # Errors
    /// When no attempt succeeds.
    pub async fn poll<T, E, F>(
        &self,
        mut attempt: impl FnMut() -> F,
        mut waiting: impl FnMut(&E, Duration),
    ) -> Result<T, PollError<E>>
    where
        // An AsyncFnMut could lend to its attempts, but no task could be made of it (rust-lang/rust#110338).
        F: Future<Output = Result<T, Failed<E>>>,
    {
        let deadline = Instant::now() + self.limit;
        let mut last = None;
        let mut made = 0;
        let mut delays = self.delays();
        while let Ok(result) = timeout_at(deadline, attempt()).await {
            let error = match result {
                Ok(value) => return Ok(value),
                Err(Failed::Stop(error)) => return Err(PollError::Stopped(error)),
                Err(Failed::Retry(error)) => error,
            };
            made += 1;
            if self.attempts == Some(made) {
                return Err(PollError::TooOften(error));
            }
            let delay = delays.next().unwrap_or(self.longest_delay);
            waiting(&error, delay);
            last = Some(error);
            if Instant::now() + delay >= deadline {
                break;
            }
            sleep(delay).await;
        }
        Err(PollError::TimedOut {
            limit: self.limit,
            last,
        })
    }

    fn delays(&self) -> impl Iterator<Item = Duration> + use<> {
        let delays = ExponentialBuilder::new()
            .with_min_delay(self.first_delay)
            .with_max_delay(self.longest_delay)
            .without_max_times();
        if self.jitter { delays.with_jitter() } else { delays }.build()
    }
}

/// Makes attempts until one succeeds, without end and with delays as of [`Schedule::backing_off`]. `waiting` is told why an
/// attempt failed.
pub async fn poll_endlessly<T, E, F>(
    first_delay: Duration,
    longest_delay: Duration,
    mut attempt: impl FnMut() -> F,
    mut waiting: impl FnMut(&E),
) -> T
where
    F: Future<Output = Result<T, E>>,
{
    let mut delays = Schedule::backing_off(first_delay, longest_delay, Duration::MAX).delays();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => waiting(&error),
        }
        sleep(delays.next().unwrap_or(longest_delay)).await;
    }
}

impl<E> PollError<E> {
    /// The last failure, if there was one.
    pub fn into_last(self) -> Option<E> {
        match self {
            Self::Stopped(error) | Self::TooOften(error) => Some(error),
            Self::TimedOut { last, .. } => last,
        }
    }
}

impl<E: fmt::Display> fmt::Display for PollError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(error) | Self::TooOften(error) => error.fmt(f),
            Self::TimedOut { limit, last: None } => write!(f, "no answer within {limit:?}"),
            // The last failure is the source.
            Self::TimedOut { limit, .. } => write!(f, "gave up after {limit:?}"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for PollError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Stopped(error) | Self::TooOften(error) => error.source(),
            Self::TimedOut { last, .. } => last.as_ref().map(|error| error as _),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::io;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const EVERY_SECOND: Schedule = Schedule::every(SECOND, Duration::from_secs(10));

    fn number(n: u32) -> io::Error {
        io::Error::other(format!("attempt {n}"))
    }

    /// Fails as an attempt that may succeed later.
    fn fail(n: &mut u32) -> Result<u32, Failed<io::Error>> {
        *n += 1;
        Err(Failed::Retry(number(*n)))
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_success_ends_it() {
        let (start, mut n, mut told) = (Instant::now(), 0, Vec::new());
        let attempt = || ready(if n == 3 { Ok(n) } else { fail(&mut n) });
        let result = EVERY_SECOND
            .poll(attempt, |error, _| told.push(error.to_string()))
            .await;
        assert_eq!(result.unwrap(), 3);
        assert_eq!(start.elapsed(), 3 * SECOND);
        assert_eq!(told, ["attempt 1", "attempt 2", "attempt 3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_succeed_is_not_tried_again() {
        let mut n = 0;
        let attempt = || {
            n += 1;
            ready(Err::<(), _>(Failed::Stop(number(n))))
        };
        let result = EVERY_SECOND.poll(attempt, |_, _| {}).await;
        assert_eq!(result.unwrap_err().to_string(), "attempt 1");
        assert_eq!(n, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_attempts_can_be_bounded() {
        let mut n = 0;
        let attempt = || ready(fail(&mut n));
        let error = EVERY_SECOND.at_most(3).poll(attempt, |_, _| {}).await.unwrap_err();
        assert_eq!(error.to_string(), "attempt 3");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_failure_is_reported_when_time_is_up() {
        let (start, mut n) = (Instant::now(), 0);
        let error = EVERY_SECOND.poll(|| ready(fail(&mut n)), |_, _| {}).await.unwrap_err();
        assert!(start.elapsed() <= 10 * SECOND);
        assert_eq!(error.to_string(), "gave up after 10s");
        assert_eq!(error.into_last().unwrap().to_string(), "attempt 10");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_never_ends_is_ended() {
        let start = Instant::now();
        let attempt = pending::<Result<(), Failed<io::Error>>>;
        let error = EVERY_SECOND.poll(attempt, |_, _| {}).await.unwrap_err();
        assert_eq!(start.elapsed(), 10 * SECOND);
        assert_eq!(error.to_string(), "no answer within 10s");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_it_goes_on_until_it_succeeds() {
        let (mut n, mut told) = (0, 0);
        let attempt = || {
            n += 1;
            ready(if n < 1000 { Err(number(n)) } else { Ok(n) })
        };
        assert_eq!(poll_endlessly(SECOND, 4 * SECOND, attempt, |_| told += 1).await, 1000);
        assert_eq!(told, 999);
    }

    #[tokio::test(start_paused = true)]
    async fn delays_grow_up_to_the_longest() {
        let schedule = Schedule::backing_off(SECOND, 4 * SECOND, Duration::from_secs(60));
        let (mut n, mut delays) = (0, Vec::new());
        let attempt = || ready(fail(&mut n));
        schedule.poll(attempt, |_, delay| delays.push(delay)).await.unwrap_err();
        // Jitter adds up to the delay itself.
        for (delay, least) in delays.iter().zip([1, 2, 4, 4, 4]) {
            assert!((least * SECOND..=2 * least * SECOND).contains(delay), "{delays:?}");
        }
    }
}
