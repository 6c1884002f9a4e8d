//! The node lock: a node becomes part of one cluster, in one way, once per boot.
//!
//! Taking it has two halves. [`NodeLock::reserve`] is instant and decides between init server and join client;
//! [`Reservation::measure`] measures the membership and cannot be undone. Whatever changes the node takes the [`Locked`] that
//! only measuring gives.

use std::sync::{Arc, Mutex, PoisonError};

use attestation::{DeviceError, MeasuringAttester, Membership};
use digest::Digest;
use tokio::task::spawn_blocking;

/// Who took the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Init,
    Join,
    Rejoin,
}

pub(crate) struct NodeLock {
    attester: Arc<dyn MeasuringAttester>,
    owner: Mutex<Option<Owner>>,
}

/// The right to measure a membership. There is only one per boot.
pub(crate) struct Reservation {
    attester: Arc<dyn MeasuringAttester>,
}

/// Proof that this node has measured which cluster it becomes part of, and its role there.
#[derive(Debug)]
pub(crate) struct Locked(());

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is already becoming part of a cluster")]
pub(crate) struct Taken(pub(crate) Owner);

#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    #[error("cannot measure the membership")]
    Device(#[from] DeviceError),
    #[error("the measured membership is {actual}, expected {expected}")]
    Shown { actual: Digest, expected: Digest },
}

impl NodeLock {
    pub(crate) fn new(attester: Arc<dyn MeasuringAttester>) -> Self {
        Self {
            attester,
            owner: Mutex::new(None),
        }
    }

    pub(crate) fn reserve(&self, owner: Owner) -> Result<Reservation, Taken> {
        let mut current = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        match *current {
            Some(other) => Err(Taken(other)),
            None => {
                *current = Some(owner);
                Ok(Reservation {
                    attester: self.attester.clone(),
                })
            }
        }
    }
}

impl Reservation {
    /// Measures what this node becomes, and checks that the device shows exactly that.
    ///
    /// # Cancel safety
    /// What was measured stays measured; the lock stays taken either way.
    pub(crate) async fn measure(self, membership: Membership) -> Result<Locked, MeasureError> {
        let measure = move || {
            self.attester.measure_membership(&membership)?;
            let measured = self.attester.membership()?;
            if measured.is(&membership) {
                Ok(Locked(()))
            } else {
                Err(MeasureError::Shown {
                    actual: measured.shown(),
                    expected: measured.shown_by(&membership),
                })
            }
        };
        spawn_blocking(measure).await.expect("devices do not panic")
    }
}

#[cfg(test)]
mod tests {
    use cluster_types::{ClusterId, NodeRole};
    use test_machines::{Machine, Technology, for_each_technology};

    use super::*;

    for_each_technology!(async:
        one_side_takes_it_and_the_cluster_is_measured,
        of_many_at_once_one_gets_it,
        a_machine_that_measured_before_is_noticed,
    );

    fn lock(technology: &dyn Technology) -> (NodeLock, Box<dyn Machine>) {
        let machine = technology.boot().unwrap();
        (NodeLock::new(machine.attester().unwrap()), machine)
    }

    fn member(id: u8) -> Membership {
        Membership::new(ClusterId::new([id; 32]), NodeRole::Worker)
    }

    async fn one_side_takes_it_and_the_cluster_is_measured(technology: &'static dyn Technology) {
        let (lock, _machine) = lock(technology);
        let reservation = lock.reserve(Owner::Join).unwrap();
        assert_eq!(lock.reserve(Owner::Init).err(), Some(Taken(Owner::Join)));
        reservation.measure(member(7)).await.unwrap();
        assert!(lock.attester.membership().unwrap().is(&member(7)));
        assert!(lock.reserve(Owner::Join).is_err());
    }

    async fn of_many_at_once_one_gets_it(technology: &'static dyn Technology) {
        let (lock, _machine) = lock(technology);
        let winners = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| lock.reserve(Owner::Init).is_ok()))
                .collect();
            tries
                .into_iter()
                .map(|one| one.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(winners, 1);
    }

    async fn a_machine_that_measured_before_is_noticed(technology: &'static dyn Technology) {
        let (lock, _machine) = lock(technology);
        lock.attester.measure_membership(&member(1)).unwrap();
        let measured = lock.reserve(Owner::Init).unwrap().measure(member(7)).await;
        assert!(matches!(measured, Err(MeasureError::Shown { .. })));
    }
}
