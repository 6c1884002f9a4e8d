use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// `USER_HZ`, in which the kernel tells processor times on every architecture that we build for (time(7)).
const TICKS_PER_SECOND: u64 = 100;

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// Time that passes.
    Wall,
    /// Time that the calling thread was on a core.
    ThisThread,
}

impl Clock {
    pub(crate) fn now(self) -> Duration {
        let now = clock_gettime(match self {
            Self::Wall => ClockId::Monotonic,
            Self::ThisThread => ClockId::ThreadCPUTime,
        });
        Duration::try_from(now).expect("these clocks begin at zero")
    }
}

/// How long the threads of a process, also those that ended, were on a core so far. Counted in hundredths of a second.
///
/// # Errors
/// When there is no such process.
pub fn processor_time(process: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).context("reading the times of a process")?;
    let ticks = ticks(&stat).context("the times of a process are not where they should be")?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// `utime` and `stime`, fields 14 and 15 (proc_pid_stat(5)). The second field is a name in brackets, which may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194304 90 0 0 0 12 30 0 0 20 0 3 0 100 0 0";
        assert_eq!(ticks(stat), Some(42));
    }

    #[test]
    fn this_process_has_times() {
        processor_time(std::process::id()).unwrap();
    }
}
