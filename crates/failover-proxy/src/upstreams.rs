use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After so long, one that did not answer is tried in its turn again: it may be back, and those who use it belong there.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// Where connections can go, the best place first.
#[derive(Debug, Default)]
pub struct Upstreams(Mutex<Vec<Upstream>>);

#[derive(Clone, Copy, Debug)]
struct Upstream {
    address: SocketAddr,
    /// When it last did not answer, if it has not answered since.
    failing: Option<Instant>,
    is_ready: bool,
}

impl Upstreams {
    /// Replaces all of them. What is known of those that stay, stays known.
    pub fn set(&self, addresses: &[SocketAddr]) {
        let mut upstreams = self.lock();
        let known = |address: SocketAddr| upstreams.iter().find(|known| known.address == address).copied();
        let new = addresses.iter().map(|&address| {
            known(address).unwrap_or(Upstream {
                address,
                failing: None,
                is_ready: false,
            })
        });
        *upstreams = new.collect();
    }

    /// In the order in which they were given; then those that did not answer lately, the one that failed first at the front.
    pub(crate) fn in_order(&self) -> Vec<SocketAddr> {
        self.ordered().iter().map(|upstream| upstream.address).collect()
    }

    /// The same, apart: those that are ready, and those that are not or were not asked.
    pub(crate) fn by_readiness(&self) -> [Vec<SocketAddr>; 2] {
        let (ready, others): (Vec<_>, Vec<_>) = self.ordered().into_iter().partition(|upstream| upstream.is_ready);
        [ready, others].map(|group| group.iter().map(|upstream| upstream.address).collect())
    }

    fn ordered(&self) -> Vec<Upstream> {
        let mut upstreams = self.lock().clone();
        let lately = |failed: &Instant| failed.elapsed() < FORGET_AFTER;
        upstreams.sort_by_key(|upstream| upstream.failing.filter(lately));
        upstreams
    }

    /// Whether that changes anything.
    pub(crate) fn set_ready(&self, address: SocketAddr, is_ready: bool) -> bool {
        self.update(address, |upstream| {
            std::mem::replace(&mut upstream.is_ready, is_ready) != is_ready
        })
    }

    /// Whether that changes anything.
    pub(crate) fn answered(&self, address: SocketAddr) -> bool {
        self.update(address, |upstream| upstream.failing.take().is_some())
    }

    /// Whether that changes anything.
    pub(crate) fn failed(&self, address: SocketAddr) -> bool {
        self.update(address, |upstream| upstream.failing.replace(Instant::now()).is_none())
    }

    fn update(&self, address: SocketAddr, change: impl FnOnce(&mut Upstream) -> bool) -> bool {
        let mut upstreams = self.lock();
        let upstream = upstreams.iter_mut().find(|upstream| upstream.address == address);
        // It may have been replaced meanwhile.
        upstream.is_some_and(change)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Upstream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([10, 42, 1, 100], port).into()
    }

    fn upstreams(ports: &[u16]) -> Upstreams {
        let upstreams = Upstreams::default();
        upstreams.set(&ports.iter().copied().map(address).collect::<Vec<_>>());
        upstreams
    }

    fn ports(upstreams: &Upstreams) -> Vec<u16> {
        upstreams.in_order().iter().map(SocketAddr::port).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_comes_last() {
        let upstreams = upstreams(&[1, 2, 3]);
        assert_eq!(ports(&upstreams), [1, 2, 3]);
        assert!(upstreams.failed(address(1)));
        assert_eq!(ports(&upstreams), [2, 3, 1]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(upstreams.failed(address(2)));
        assert_eq!(ports(&upstreams), [3, 1, 2]);
        // Whoever has waited longest is tried first.
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!upstreams.failed(address(1)));
        assert_eq!(ports(&upstreams), [3, 2, 1]);
        assert!(upstreams.answered(address(1)));
        assert!(!upstreams.answered(address(1)));
        assert_eq!(ports(&upstreams), [1, 3, 2]);
        tokio::time::advance(FORGET_AFTER).await;
        assert_eq!(ports(&upstreams), [1, 2, 3]);
    }

    #[test]
    fn who_is_ready_stands_apart() {
        let upstreams = upstreams(&[1, 2, 3]);
        assert!(upstreams.set_ready(address(3), true));
        assert!(!upstreams.set_ready(address(3), true));
        let [ready, others] = upstreams.by_readiness();
        assert_eq!((ready, others), (vec![address(3)], vec![address(1), address(2)]));
        upstreams.set(&[address(3)]);
        assert_eq!(upstreams.by_readiness()[0], [address(3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_stays_is_still_known() {
        let upstreams = upstreams(&[1, 2]);
        upstreams.failed(address(1));
        upstreams.set(&[address(1), address(3)]);
        assert_eq!(ports(&upstreams), [3, 1]);
        assert!(!upstreams.failed(address(2)));
    }
}
