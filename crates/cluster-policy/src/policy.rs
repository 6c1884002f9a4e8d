use cluster_types::{ClusterId, KeyServicePublicKey, KubernetesVersion};
use digest::Digest;
use kubernetes_components::ComponentList;
use measurements::ReferenceValues;

/// What the operator says about a cluster. Each new policy has a higher serial than the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// Tells policies of one cluster apart; the first has 1.
    pub serial: u64,
    /// The images that nodes may run, all of one attestation variant. More than one only while an update is open.
    pub images: Vec<ReferenceValues>,
    /// What nodes may install.
    pub releases: Vec<Release>,
    /// Role grants with a lower serial are void.
    pub min_grant_serial: u64,
    /// The key whose signature nodes require on their secrets.
    pub key_service: KeyServicePublicKey,
}

/// A Kubernetes release that nodes may install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The version, which the list names too.
    pub version: KubernetesVersion,
    /// Digest of the list of its components ([`ComponentList::digest`]).
    pub components: Digest,
}

/// A policy for another cluster than the one in which it was presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster policy is for cluster {named}, but this is cluster {actual}")]
pub struct AnotherCluster {
    /// What the policy says.
    pub named: ClusterId,
    /// Where it was presented.
    pub actual: ClusterId,
}

/// Components that the policy does not list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster policy (serial {serial}) does not list Kubernetes {version} with the list of components {}",
    digest::oci::format(.components)
)]
pub struct UnlistedRelease {
    /// The policy's serial.
    pub serial: u64,
    /// The version that the list is for.
    pub version: KubernetesVersion,
    /// The list's digest.
    pub components: Digest,
}

impl Release {
    /// The release that this list makes up.
    #[must_use]
    pub fn of(list: &ComponentList) -> Self {
        Self {
            version: list.kubernetes_version().clone(),
            components: list.digest(),
        }
    }
}

impl ClusterPolicy {
    /// This policy with the serial that follows the newest one, unless that says the same. A policy of another cluster does not count.
    #[must_use]
    pub fn succeeding(self, newest: Option<&Self>) -> Option<Self> {
        let Some(newest) = newest.filter(|newest| newest.cluster == self.cluster) else {
            return Some(Self { serial: 1, ..self });
        };
        let with = |serial| Self { serial, ..self.clone() };
        (with(newest.serial) != *newest).then(|| with(newest.serial + 1))
    }

    /// Checks for which cluster it is.
    ///
    /// # Errors
    /// When it is for another one.
    pub fn must_be_for(&self, cluster: ClusterId) -> Result<(), AnotherCluster> {
        if self.cluster == cluster {
            return Ok(());
        }
        Err(AnotherCluster {
            named: self.cluster,
            actual: cluster,
        })
    }

    /// Checks that nodes may install these components, from these addresses and to these paths.
    ///
    /// # Errors
    /// When the policy does not list them.
    pub fn must_list(&self, components: &ComponentList) -> Result<(), UnlistedRelease> {
        let release = Release::of(components);
        if self.releases.contains(&release) {
            return Ok(());
        }
        Err(UnlistedRelease {
            serial: self.serial,
            version: release.version,
            components: release.components,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signed::tests::policy;

    #[test]
    fn a_policy_that_says_something_else_has_the_next_serial() {
        let newest = policy();
        assert_eq!(policy().succeeding(None).unwrap().serial, 1);
        assert_eq!(policy().succeeding(Some(&newest)), None);
        let changed = ClusterPolicy {
            min_grant_serial: 1,
            serial: 1,
            ..policy()
        };
        assert_eq!(changed.succeeding(Some(&newest)).unwrap().serial, newest.serial + 1);
        let of_another_cluster = ClusterPolicy {
            cluster: ClusterId::new([9; 32]),
            ..policy()
        };
        assert_eq!(policy().succeeding(Some(&of_another_cluster)).unwrap().serial, 1);
    }
}
