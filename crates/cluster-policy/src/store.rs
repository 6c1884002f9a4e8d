use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use atomic_file::Access;
use cluster_types::ClusterId;
use rustix::fs::OFlags;

use crate::signed::MAX_LEN;
use crate::{BelievedPolicy, ParsePolicyError, SignedPolicy};

/// The newest policy that this machine has seen, in a file on its encrypted state disk. An earlier one is never in force again.
#[derive(Clone, Debug)]
pub struct PolicyStore {
    path: PathBuf,
}

/// A policy that cannot follow the one that was in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNewerError {
    /// A machine has one cluster for as long as it has its state disk.
    #[error("the cluster policy is for cluster {presented}, but this machine is part of cluster {seen}")]
    AnotherCluster {
        /// The cluster of the policies before.
        seen: ClusterId,
        /// The cluster of this one.
        presented: ClusterId,
    },
    /// It would take the cluster back.
    #[error("the cluster policy has serial {presented}, but serial {seen} has been in force on this machine")]
    Older {
        /// The serial of the newest one.
        seen: u64,
        /// The serial of this one.
        presented: u64,
    },
    /// The operator signed two of one serial: which one counts would depend on who asks.
    #[error("another cluster policy with serial {serial} has been in force on this machine")]
    SameSerial {
        /// The serial of both.
        serial: u64,
    },
}

/// A store could not be used, or a policy not be put into force.
#[derive(Debug, thiserror::Error)]
pub enum AdvancePolicyError {
    /// It is not newer.
    #[error(transparent)]
    NotNewer(#[from] NotNewerError),
    /// The store cannot be read. Without it, nothing says what has been in force.
    #[error("cannot read {path}, which holds the newest cluster policy that this machine has seen")]
    Read {
        /// Where the newest policy should be.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The store does not hold a policy.
    #[error("{path} does not hold a cluster policy")]
    Stored {
        /// Where the newest policy should be.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ParsePolicyError,
    },
    /// The store cannot be written.
    #[error("cannot write {path}, which holds the newest cluster policy that this machine has seen")]
    Write {
        /// Where the newest policy should be.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl PolicyStore {
    /// A store in this file. Whoever makes the machine a member of its cluster writes the first policy there, so that a store that
    /// is missing later is an error.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Puts a policy into force: from now on, no earlier one is accepted. The policy that is in force is accepted again.
    ///
    /// # Errors
    /// When a newer policy has been in force, or the store cannot be used.
    pub fn advance(&self, policy: &BelievedPolicy) -> Result<(), AdvancePolicyError> {
        let path = || self.path.clone();
        // Held until the end: another process may have another policy.
        let _lock = self
            .lock()
            .map_err(|source| AdvancePolicyError::Write { path: path(), source })?;
        if follows(&self.load()?, policy)? == Next::Newer {
            self.write(policy)
                .map_err(|source| AdvancePolicyError::Write { path: path(), source })?;
        }
        Ok(())
    }

    /// The policy that is in force here.
    ///
    /// # Errors
    /// When the store cannot be read, or holds something else.
    pub fn load(&self) -> Result<SignedPolicy, AdvancePolicyError> {
        let path = || self.path.clone();
        let stored = atomic_file::read(&self.path, MAX_LEN)
            .map_err(|source| AdvancePolicyError::Read { path: path(), source })?;
        SignedPolicy::parse(&stored).map_err(|source| AdvancePolicyError::Stored { path: path(), source })
    }

    fn lock(&self) -> io::Result<File> {
        let file = File::options()
            .create(true)
            .append(true)
            // On a disk that root may have written in an earlier boot, the file could be a link.
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(self.path.with_extension("lock"))?;
        file.lock()?;
        Ok(file)
    }

    /// Writes the first policy of a machine.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, policy: &BelievedPolicy) -> io::Result<()> {
        atomic_file::replace(&self.path, policy.as_bytes(), Access::Everyone)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Same,
    Newer,
}

/// Whether a policy may be in force after the newest one that was seen.
fn follows(seen: &SignedPolicy, presented: &BelievedPolicy) -> Result<Next, NotNewerError> {
    if presented.cluster != seen.cluster() {
        return Err(NotNewerError::AnotherCluster {
            seen: seen.cluster(),
            presented: presented.cluster,
        });
    }
    if presented.serial < seen.serial() {
        return Err(NotNewerError::Older {
            seen: seen.serial(),
            presented: presented.serial,
        });
    }
    if presented.serial > seen.serial() {
        Ok(Next::Newer)
    } else if presented.as_bytes() == seen.as_bytes() {
        Ok(Next::Same)
    } else {
        Err(NotNewerError::SameSerial { serial: seen.serial() })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::signed::tests::{operator, policy};

    fn with(serial: u64, min_grant_serial: u64) -> BelievedPolicy {
        let mut changed = policy();
        (changed.serial, changed.min_grant_serial) = (serial, min_grant_serial);
        BelievedPolicy::sign(&changed, &operator()).unwrap()
    }

    fn store(serial: u64) -> (TempDir, PolicyStore) {
        let folder = TempDir::new().unwrap();
        let store = PolicyStore::new(folder.path().join("policy"));
        store.write(&with(serial, 0)).unwrap();
        (folder, store)
    }

    fn refused(store: &PolicyStore, policy: &BelievedPolicy) -> NotNewerError {
        match store.advance(policy) {
            Err(AdvancePolicyError::NotNewer(refused)) => refused,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_serial_goes_back() {
        let (_folder, store) = store(2);
        store.advance(&with(2, 0)).unwrap();
        assert_eq!(
            refused(&store, &with(1, 0)),
            NotNewerError::Older { seen: 2, presented: 1 }
        );
        store.advance(&with(4, 0)).unwrap();
        for older in [1, 2, 3] {
            assert_eq!(
                refused(&store, &with(older, 0)),
                NotNewerError::Older {
                    seen: 4,
                    presented: older
                }
            );
        }
        store.advance(&with(4, 0)).unwrap();
    }

    /// The operator terminated that cluster; its policies are still the operator's.
    #[test]
    fn a_policy_for_another_cluster_is_never_in_force() {
        let (_folder, store) = store(2);
        let mut other = policy();
        (other.cluster, other.serial) = (ClusterId::new([9; 32]), 9);
        let other = BelievedPolicy::sign(&other, &operator()).unwrap();
        assert_eq!(
            refused(&store, &other),
            NotNewerError::AnotherCluster {
                seen: policy().cluster,
                presented: ClusterId::new([9; 32]),
            }
        );
        store.advance(&with(3, 0)).unwrap();
    }

    #[test]
    fn of_two_policies_with_one_serial_the_first_counts() {
        let (_folder, store) = store(2);
        assert_eq!(refused(&store, &with(2, 1)), NotNewerError::SameSerial { serial: 2 });
        store.advance(&with(2, 0)).unwrap();
    }

    /// Otherwise whoever removes or damages the file takes the machine back to any policy.
    #[test]
    fn a_store_that_is_missing_or_damaged_accepts_nothing() {
        let (folder, store) = store(2);
        fs::write(folder.path().join("policy"), "nonsense").unwrap();
        assert!(matches!(
            store.advance(&with(3, 0)),
            Err(AdvancePolicyError::Stored { .. })
        ));
        fs::remove_file(folder.path().join("policy")).unwrap();
        assert!(matches!(
            store.advance(&with(3, 0)),
            Err(AdvancePolicyError::Read { .. })
        ));
    }

    /// Another process compares and writes meanwhile.
    #[test]
    fn whoever_holds_the_lock_is_waited_for() {
        let (_folder, store) = store(2);
        let stored = || SignedPolicy::parse(&fs::read(&store.path).unwrap()).unwrap().serial();
        let lock = store.lock().unwrap();
        std::thread::scope(|scope| {
            let advancing = scope.spawn(|| store.advance(&with(3, 0)));
            std::thread::sleep(std::time::Duration::from_millis(300));
            assert_eq!(stored(), 2);
            drop(lock);
            advancing.join().unwrap().unwrap();
        });
        assert_eq!(stored(), 3);
    }

    #[test]
    fn a_policy_that_cannot_be_stored_is_not_in_force() {
        let (folder, store) = store(2);
        // In the way of the new file.
        fs::create_dir(folder.path().join(".policy.new")).unwrap();
        assert!(matches!(
            store.advance(&with(3, 0)),
            Err(AdvancePolicyError::Write { .. })
        ));
        store.advance(&with(2, 0)).unwrap();
    }

    /// Root wrote the folder in an earlier boot: nothing outside is created.
    #[test]
    fn a_lock_that_is_a_link_leads_nowhere() {
        let (folder, store) = store(1);
        let elsewhere = folder.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, store.path.with_extension("lock")).unwrap();
        let refused = store.advance(&with(2, 0)).unwrap_err();
        assert!(matches!(refused, AdvancePolicyError::Write { .. }), "{refused}");
        assert!(!elsewhere.exists());
    }
}
