//! The node lock: a node becomes part of one cluster, in one way, once per boot.
//!
//! Taking it has two halves. [`NodeLock::claim`] is instant and decides between init server and join client;
//! [`Claim::measure`] extends PCR 15 and cannot be undone. Whatever changes the node takes the [`Locked`] that only
//! measuring gives.

use std::sync::{Arc, Mutex, PoisonError};

use attestation_tpm::{TpmAttester, TpmError};
use cluster_types::ClusterId;
use measurements::{PcrIndex, PcrValue};
use tokio::task::spawn_blocking;

/// PCR 15 of this machine.
pub(crate) trait ClusterRegister: Send + Sync {
    fn read(&self) -> Result<PcrValue, TpmError>;
    fn extend(&self, cluster: ClusterId) -> Result<(), TpmError>;
}

/// Who took the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Init,
    Join,
}

pub(crate) struct NodeLock {
    register: Arc<dyn ClusterRegister>,
    owner: Mutex<Option<Owner>>,
}

/// The right to measure the cluster id. There is only one per boot.
pub(crate) struct Claim {
    register: Arc<dyn ClusterRegister>,
}

/// Proof that this node's PCR 15 holds the id of the cluster that it is joining.
#[derive(Debug)]
pub(crate) struct Locked(());

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is already becoming part of a cluster")]
pub(crate) struct Taken(pub(crate) Owner);

#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    #[error("cannot measure the cluster id")]
    Tpm(#[from] TpmError),
    #[error("PCR 15 is {actual} after measuring the cluster id, expected {expected}")]
    Value { actual: PcrValue, expected: PcrValue },
}

impl NodeLock {
    pub(crate) fn new(register: Arc<dyn ClusterRegister>) -> Self {
        Self {
            register,
            owner: Mutex::new(None),
        }
    }

    pub(crate) fn claim(&self, owner: Owner) -> Result<Claim, Taken> {
        let mut current = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        match *current {
            Some(other) => Err(Taken(other)),
            None => {
                *current = Some(owner);
                Ok(Claim {
                    register: self.register.clone(),
                })
            }
        }
    }
}

impl Claim {
    /// Extends PCR 15 with the cluster id.
    ///
    /// # Cancel safety
    /// The TPM command is not undone; the lock stays taken either way.
    pub(crate) async fn measure(self, cluster: ClusterId) -> Result<Locked, MeasureError> {
        let measure = move || {
            self.register.extend(cluster)?;
            let (actual, expected) = (self.register.read()?, expected_register(cluster));
            if actual == expected {
                Ok(Locked(()))
            } else {
                Err(MeasureError::Value { actual, expected })
            }
        };
        spawn_blocking(measure).await.expect("TPM commands do not panic")
    }
}

/// What PCR 15 of every member of this cluster holds.
pub(crate) fn expected_register(cluster: ClusterId) -> PcrValue {
    PcrValue::ZERO.event(cluster.as_bytes())
}

impl ClusterRegister for TpmAttester {
    fn read(&self) -> Result<PcrValue, TpmError> {
        let values = self.with_tpm(|tpm| tpm.read_pcrs(&[PcrIndex::CLUSTER_ID]))?;
        values
            .get(&PcrIndex::CLUSTER_ID)
            .copied()
            .ok_or(TpmError::NoSuchPcr(PcrIndex::CLUSTER_ID))
    }

    fn extend(&self, cluster: ClusterId) -> Result<(), TpmError> {
        self.with_tpm(|tpm| tpm.extend_with_event(PcrIndex::CLUSTER_ID, cluster.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct FakeRegister(Mutex<PcrValue>);

    impl ClusterRegister for FakeRegister {
        fn read(&self) -> Result<PcrValue, TpmError> {
            Ok(*self.0.lock().unwrap())
        }

        fn extend(&self, cluster: ClusterId) -> Result<(), TpmError> {
            let mut value = self.0.lock().unwrap();
            *value = value.event(cluster.as_bytes());
            Ok(())
        }
    }

    fn lock(register: PcrValue) -> NodeLock {
        NodeLock::new(Arc::new(FakeRegister(Mutex::new(register))))
    }

    #[tokio::test]
    async fn one_side_takes_it_and_the_cluster_is_measured() {
        let (lock, cluster) = (lock(PcrValue::ZERO), ClusterId::new([7; 32]));
        let claim = lock.claim(Owner::Join).unwrap();
        assert_eq!(lock.claim(Owner::Init).err(), Some(Taken(Owner::Join)));
        claim.measure(cluster).await.unwrap();
        assert_eq!(lock.register.read().unwrap(), expected_register(cluster));
        assert!(lock.claim(Owner::Join).is_err());
    }

    #[test]
    fn of_many_at_once_one_gets_it() {
        let lock = lock(PcrValue::ZERO);
        let winners = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| lock.claim(Owner::Init).is_ok()))
                .collect();
            tries
                .into_iter()
                .map(|one| one.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(winners, 1);
    }

    #[tokio::test]
    async fn a_register_that_was_used_before_is_noticed() {
        let lock = lock(PcrValue::new([1; 32]));
        let measured = lock.claim(Owner::Init).unwrap().measure(ClusterId::new([7; 32])).await;
        assert!(matches!(measured, Err(MeasureError::Value { .. })));
    }
}
