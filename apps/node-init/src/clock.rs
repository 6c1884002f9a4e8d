//! Checks that the kernel's clock runs at the right rate.
//!
//! Early in the boot, the kernel measures the rate of the processor's counter once, against one of the machine's timers. If the
//! host is busy at that moment, the result is wrong by some factor, and with `tsc=reliable` nothing corrects it later. A clock was
//! seen to run 20 times too fast: units timed out, and devices did not appear "in time". Only a restarted kernel measures again.
//!
//! The RTC belongs to the host and is used only for this. A host that makes it lie can restart the machine for ever or leave it
//! with a bad clock, but a host can stop the machine anyway. So restarts are not counted, and nothing outlives them in which to
//! count.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The tolerated deviation of the clock's rate.
const TOLERANCE: f64 = 0.05;
/// After this many deviating comparisons, the clock is wrong, and not only a host busy during the comparison.
const MAX_COMPARISONS: usize = 4;
/// How long an RTC may take, by our clock, for one of its seconds. A clock that is more than 100 times too fast does not come
/// out of the kernel: it reads its timer a thousand times while it measures, which takes longer.
const MAX_SECOND: Duration = Duration::from_secs(100);
/// Pause between two reads of the RTC, which ticks once a second; we wait for its edges.
const INTERVAL: Duration = Duration::from_millis(1);

/// The rate of the clock cannot be determined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompareError {
    #[error("cannot read the RTC from {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the RTC at {path} does not show a number of seconds")]
    NotSeconds { path: PathBuf },
    #[error("the RTC did not advance by {expected:?} within {waited:?}")]
    StandsStill { expected: Duration, waited: Duration },
}

/// How far both clocks advanced between the same two edges of the RTC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Comparison {
    pub(crate) clock: Duration,
    pub(crate) rtc: Duration,
}

/// What follows from the comparisons so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    GoOn,
    /// Over this time of the RTC. Each is twice as long as the one before: what a busy host adds at its ends matters less.
    CompareAgain(Duration),
    Restart,
}

/// Decides what to do. No comparison yet means the first one.
pub(crate) fn decide(comparisons: &[Comparison]) -> Verdict {
    match comparisons.last() {
        Some(last) if last.is_right() => Verdict::GoOn,
        _ if comparisons.len() < MAX_COMPARISONS => Verdict::CompareAgain(Duration::from_secs(1 << comparisons.len())),
        _ => Verdict::Restart,
    }
}

impl Comparison {
    /// 1 is right, 20 is a clock that runs 20 times too fast.
    pub(crate) fn rate(&self) -> f64 {
        self.clock.as_secs_f64() / self.rtc.as_secs_f64()
    }

    fn is_right(&self) -> bool {
        (self.rate() - 1.0).abs() <= TOLERANCE
    }
}

/// The clocks of a machine.
pub(crate) trait Clocks {
    /// The kernel's, before anything adjusts it.
    fn clock(&self) -> Duration;

    /// The real-time clock, in whole seconds since 1970.
    fn rtc(&self) -> Result<u64, CompareError>;

    fn sleep(&self, time: Duration);
}

/// Compares both clocks over `time` of the RTC, from one of its edges to another.
pub(crate) fn compare(clocks: &impl Clocks, time: Duration) -> Result<Comparison, CompareError> {
    let (first, start) = wait_for_rtc(clocks, clocks.rtc()?.saturating_add(1))?;
    let (last, end) = wait_for_rtc(clocks, first.saturating_add(time.as_secs()))?;
    Ok(Comparison {
        clock: end.saturating_sub(start),
        rtc: Duration::from_secs(last - first),
    })
}

/// Waits until the RTC shows `second` or a later one. Returns that second, and the time on our clock.
fn wait_for_rtc(clocks: &impl Clocks, second: u64) -> Result<(u64, Duration), CompareError> {
    let (from, start) = (clocks.rtc()?, clocks.clock());
    let expected = Duration::from_secs(second.saturating_sub(from));
    loop {
        let (found, now) = (clocks.rtc()?, clocks.clock());
        if found >= second {
            return Ok((found, now));
        }
        let waited = now.saturating_sub(start);
        if waited > MAX_SECOND.saturating_mul(expected.as_secs().max(1).try_into().unwrap_or(u32::MAX)) {
            return Err(CompareError::StandsStill { expected, waited });
        }
        clocks.sleep(INTERVAL);
    }
}

/// The clocks of this machine.
pub(crate) struct ThisMachine<'a> {
    /// A file of the kernel with the seconds of the RTC.
    pub(crate) rtc: &'a Path,
}

impl Clocks for ThisMachine<'_> {
    fn clock(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
        Duration::try_from(now).unwrap_or_default()
    }

    fn rtc(&self) -> Result<u64, CompareError> {
        let text = fs::read_to_string(self.rtc).map_err(|source| CompareError::Read {
            path: self.rtc.to_owned(),
            source,
        })?;
        text.trim_end().parse().map_err(|_| CompareError::NotSeconds {
            path: self.rtc.to_owned(),
        })
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// A machine whose clock runs at some rate.
    struct Simulated {
        /// Time since 1970, as it really is.
        now: Cell<f64>,
        rate: f64,
        /// When the host takes the machine off the processor, and for how long, the next one last.
        stalls: RefCell<Vec<(f64, f64)>>,
    }

    /// What reading the RTC costs, in seconds.
    const READ: f64 = 0.000_05;

    impl Simulated {
        fn with_rate(rate: f64) -> Self {
            Self {
                now: Cell::new(1_000_000.3),
                rate,
                stalls: RefCell::default(),
            }
        }

        fn pass(&self, seconds: f64) {
            self.now.set(self.now.get() + seconds);
            let mut stalls = self.stalls.borrow_mut();
            if let Some((_, length)) = stalls.pop_if(|(start, _)| *start <= self.now.get()) {
                self.now.set(self.now.get() + length);
            }
        }

        /// Compares until there is a decision. Also returns the rates that were found.
        fn check(&self) -> Result<(Verdict, Vec<f64>), CompareError> {
            let mut comparisons = Vec::new();
            loop {
                match decide(&comparisons) {
                    Verdict::CompareAgain(time) => comparisons.push(compare(self, time)?),
                    verdict => return Ok((verdict, comparisons.iter().map(Comparison::rate).collect())),
                }
            }
        }
    }

    impl Clocks for Simulated {
        fn clock(&self) -> Duration {
            Duration::from_secs_f64((self.now.get() - 1_000_000.0) * self.rate)
        }

        fn rtc(&self) -> Result<u64, CompareError> {
            self.pass(READ);
            Ok(self.now.get() as u64)
        }

        fn sleep(&self, time: Duration) {
            self.pass(time.as_secs_f64() / self.rate);
        }
    }

    #[test]
    fn a_right_clock_is_compared_once() {
        for rate in [1.0, 1.04, 0.96] {
            let (verdict, rates) = Simulated::with_rate(rate).check().unwrap();
            assert_eq!((verdict, rates.len()), (Verdict::GoOn, 1), "{rate}: {rates:?}");
        }
    }

    #[test]
    fn a_clock_that_is_off_every_time_restarts_the_machine() {
        for rate in [20.0, 2.0, 1.06, 0.94, 0.5, 0.05] {
            let (verdict, rates) = Simulated::with_rate(rate).check().unwrap();
            assert_eq!(
                (verdict, rates.len()),
                (Verdict::Restart, MAX_COMPARISONS),
                "{rate}: {rates:?}"
            );
            let last = rates.last().unwrap();
            assert!((last / rate - 1.0).abs() < TOLERANCE, "{rate} was measured as {last}");
        }
    }

    #[test]
    fn a_host_that_is_busy_at_the_end_of_a_comparison_only_costs_another_one() {
        let machine = Simulated::with_rate(1.0);
        machine.stalls.replace(vec![(1_000_001.9, 0.4)]);
        let (verdict, rates) = machine.check().unwrap();
        assert_eq!(verdict, Verdict::GoOn);
        assert!(rates.len() == 2 && rates[0] > 1.2, "{rates:?}");
    }

    #[test]
    fn a_host_that_is_always_a_little_busy_does_not_restart_the_machine() {
        let machine = Simulated::with_rate(1.0);
        // Just in front of each edge at which a comparison ends, none in front of those at which one begins.
        machine
            .stalls
            .replace(vec![(1_000_009.95, 0.25), (1_000_004.95, 0.25), (1_000_001.95, 0.25)]);
        let (verdict, rates) = machine.check().unwrap();
        assert_eq!(verdict, Verdict::GoOn, "{rates:?}");
    }

    fn comparison(clock: u64, rtc: u64) -> Comparison {
        Comparison {
            clock: Duration::from_millis(clock),
            rtc: Duration::from_millis(rtc),
        }
    }

    #[test]
    fn tolerance_is_five_per_cent_both_ways() {
        for (clock, expected) in [(949, false), (951, true), (1000, true), (1049, true), (1051, false)] {
            let verdict = decide(&[comparison(clock, 1000)]);
            assert_eq!(verdict == Verdict::GoOn, expected, "{clock} ms in a second");
        }
    }

    #[test]
    fn each_comparison_takes_twice_as_long_as_the_one_before() {
        let off = comparison(2000, 1000);
        let verdicts: Vec<_> = (0..=MAX_COMPARISONS).map(|count| decide(&vec![off; count])).collect();
        let again = |seconds| Verdict::CompareAgain(Duration::from_secs(seconds));
        assert_eq!(verdicts, [again(1), again(2), again(4), again(8), Verdict::Restart]);
    }

    #[test]
    fn one_right_comparison_is_enough() {
        let (off, right) = (comparison(2000, 1000), comparison(4001, 4000));
        assert_eq!(decide(&[off, off, right]), Verdict::GoOn);
    }

    /// An RTC whose file says this.
    fn compare_with_rtc(content: &str) -> CompareError {
        struct Fixed<'a>(ThisMachine<'a>, Cell<Duration>);
        impl Clocks for Fixed<'_> {
            fn clock(&self) -> Duration {
                self.1.get()
            }
            fn rtc(&self) -> Result<u64, CompareError> {
                self.0.rtc()
            }
            fn sleep(&self, _: Duration) {
                self.1.set(self.1.get() + Duration::from_secs(7));
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        let clocks = Fixed(ThisMachine { rtc: file.path() }, Cell::default());
        compare(&clocks, Duration::from_secs(1)).unwrap_err()
    }

    #[test]
    fn an_rtc_that_cannot_be_used_is_said() {
        let error = compare_with_rtc("1700000000\n");
        assert!(matches!(error, CompareError::StandsStill { .. }), "{error:?}");
        let error = compare_with_rtc("soon\n");
        assert!(matches!(error, CompareError::NotSeconds { .. }), "{error:?}");
        let nowhere = ThisMachine {
            rtc: Path::new("/nonexistent/since_epoch"),
        };
        let error = compare(&nowhere, Duration::from_secs(1)).unwrap_err();
        assert!(matches!(error, CompareError::Read { .. }), "{error:?}");
    }
}
