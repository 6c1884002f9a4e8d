//! By which policy the key service decides: the operator's, for this cluster, and never an earlier one than before.

use std::sync::{Arc, Mutex, PoisonError};

use attestation::{ExpectedMembership, ExpectedStatements, SetUpVerifierError, Variants, Verifiers};
use cluster_policy::{
    AdvancePolicyError, AnotherCluster, AnotherOperator, BelievedPolicy, ParsePolicyError, PolicyStore, SignedPolicy,
};
use cluster_types::{KeyServicePublicKey, MeasurementSalt, OperatorPublicKey};
use key_derivation::{MasterSecret, cluster_id};
use node_secrets::KeyServiceKey;
use operator_key::OperatorKey;
use secret::MeasurementSecret;

/// Lets policies into force. What it compares them with follows from the master secret alone.
pub(crate) struct PolicyGate {
    operator: OperatorPublicKey,
    key_service: KeyServicePublicKey,
    measurement_secret: MeasurementSecret,
    variants: &'static dyn Variants,
    store: PolicyStore,
    /// The one that was admitted last.
    last: Mutex<Option<Arc<InForce>>>,
}

/// A policy by which nodes are appraised.
pub(crate) struct InForce {
    pub(crate) policy: BelievedPolicy,
    pub(crate) verifiers: Verifiers,
    salt: MeasurementSalt,
}

/// A policy by which nothing is decided.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyRefused {
    #[error(transparent)]
    Parse(#[from] ParsePolicyError),
    #[error(transparent)]
    Operator(#[from] AnotherOperator),
    #[error(transparent)]
    Cluster(#[from] AnotherCluster),
    #[error("the cluster policy names key service {named}, but this one is {own}")]
    KeyService {
        named: KeyServicePublicKey,
        own: KeyServicePublicKey,
    },
    #[error("the cluster policy has an image that cannot be appraised")]
    Verifier(#[from] SetUpVerifierError),
    #[error(transparent)]
    Advance(#[from] AdvancePolicyError),
}

impl PolicyGate {
    pub(crate) fn new(secret: &MasterSecret, variants: &'static dyn Variants, store: PolicyStore) -> Self {
        Self {
            operator: OperatorKey::of(secret).public(),
            key_service: KeyServiceKey::of(secret).public(),
            measurement_secret: secret.kek().measurement_secret(),
            variants,
            store,
            last: Mutex::default(),
        }
    }

    /// 1. The operator to whom the master secret belongs has signed it.
    /// 2. It is for the cluster of this master secret and salt, and names this key service.
    /// 3. Its images can be appraised.
    /// 4. No later one has been in force here. From now on, no earlier one will be.
    pub(crate) fn put_in_force(&self, policy: &[u8], salt: &MeasurementSalt) -> Result<Arc<InForce>, PolicyRefused> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && last.policy.as_bytes() == policy
            && last.salt == *salt
        {
            return Ok(last.clone());
        }
        let policy = SignedPolicy::parse(policy)?.believe(|signer| *signer == self.operator)?;
        policy.must_be_for(cluster_id(&self.measurement_secret, salt))?;
        if policy.key_service != self.key_service {
            return Err(PolicyRefused::KeyService {
                named: policy.key_service,
                own: self.key_service,
            });
        }
        // A node that joins or rejoins has not measured its membership yet; it does so with the secrets that it gets.
        let statements = ExpectedStatements {
            operator: self.operator,
            membership: ExpectedMembership::New,
        };
        let verifiers = Verifiers::one(policy.verifier(self.variants, &statements)?);
        self.store.advance(&policy)?;
        let in_force = Arc::new(InForce {
            policy,
            verifiers,
            salt: *salt,
        });
        *last = Some(in_force.clone());
        Ok(in_force)
    }
}

#[cfg(test)]
mod tests {
    use cluster_policy::NotNewerError;
    use cluster_types::ClusterId;
    use tempfile::TempDir;
    use test_machines::{SOFTWARE_KEY, SOFTWARE_TPM, Technology, master_secret};
    use test_services::{JoinConfigExample, SALT, cluster_config};

    use super::*;

    fn gate(folder: &TempDir, technology: &dyn Technology) -> PolicyGate {
        let store = PolicyStore::new(folder.path().join("newest"));
        PolicyGate::new(&master_secret(), technology.variants(), store)
    }

    /// On a control plane that has this policy from its ticket.
    fn with(first: &JoinConfigExample) -> (TempDir, PolicyGate) {
        let folder = TempDir::new().unwrap();
        let gate = gate(&folder, SOFTWARE_TPM);
        gate.store.write(&first.policy()).unwrap();
        (folder, gate)
    }

    fn admitted(gate: &PolicyGate, config: &JoinConfigExample) -> Result<u64, PolicyRefused> {
        let in_force = gate.put_in_force(config.policy().as_bytes(), &SALT)?;
        assert_eq!(in_force.policy, config.policy());
        Ok(in_force.policy.serial)
    }

    fn check(change: impl FnOnce(&mut JoinConfigExample)) -> Result<u64, PolicyRefused> {
        let first = cluster_config(SOFTWARE_TPM, &master_secret());
        let (_folder, gate) = with(&first);
        assert_eq!(admitted(&gate, &first).unwrap(), 1);
        let mut changed = first.clone();
        changed.serial = 2;
        change(&mut changed);
        admitted(&gate, &changed)
    }

    #[test]
    fn the_operators_policies_for_this_cluster_come_into_force() {
        assert_eq!(check(|same| same.serial = 1).unwrap(), 1);
        assert_eq!(check(|_| {}).unwrap(), 2);
    }

    #[test]
    fn another_operators_policy_is_refused() {
        let refused = check(|other| other.operator_seed = [9; 32]);
        assert!(matches!(refused, Err(PolicyRefused::Operator(_))), "{refused:?}");
    }

    #[test]
    fn a_policy_for_another_cluster_of_the_operator_is_refused() {
        let refused = check(|other| other.cluster = ClusterId::new([9; 32]));
        assert!(matches!(refused, Err(PolicyRefused::Cluster(_))), "{refused:?}");
        let first = cluster_config(SOFTWARE_TPM, &master_secret());
        let (_folder, gate) = with(&first);
        assert_eq!(admitted(&gate, &first).unwrap(), 1);
        let salt = MeasurementSalt::new([9; 32]);
        let refused = gate.put_in_force(first.policy().as_bytes(), &salt).map(drop);
        assert!(matches!(refused, Err(PolicyRefused::Cluster(_))), "{refused:?}");
    }

    /// The salt comes from the caller too.
    #[test]
    fn a_policy_for_another_cluster_with_its_own_salt_is_refused() {
        let first = cluster_config(SOFTWARE_TPM, &master_secret());
        let (_folder, gate) = with(&first);
        let salt = MeasurementSalt::new([9; 32]);
        let terminated = JoinConfigExample {
            cluster: cluster_id(&master_secret().kek().measurement_secret(), &salt),
            serial: 9,
            ..first.clone()
        };
        let refused = gate.put_in_force(terminated.policy().as_bytes(), &salt).map(drop);
        let Err(PolicyRefused::Advance(AdvancePolicyError::NotNewer(reason))) = refused else {
            panic!("{refused:?}")
        };
        assert!(matches!(reason, NotNewerError::AnotherCluster { .. }), "{reason:?}");
        assert_eq!(admitted(&gate, &first).unwrap(), 1);
    }

    /// Nodes would refuse what this one signs.
    #[test]
    fn a_policy_that_names_another_key_service_is_refused() {
        let refused = check(|other| other.key_service_key = KeyServicePublicKey::new([9; 32]));
        assert!(matches!(refused, Err(PolicyRefused::KeyService { .. })), "{refused:?}");
    }

    #[test]
    fn a_policy_whose_images_cannot_be_appraised_is_refused_and_takes_no_serial() {
        let first = cluster_config(SOFTWARE_TPM, &master_secret());
        let other = JoinConfigExample {
            image: SOFTWARE_KEY.image(),
            serial: 2,
            ..first.clone()
        };
        let (_folder, gate) = with(&first);
        let release = PolicyGate {
            variants: &attestation_variants::ReleaseVariants,
            ..gate
        };
        let refused = admitted(&release, &other);
        assert!(matches!(refused, Err(PolicyRefused::Verifier(_))), "{refused:?}");
        assert_eq!(admitted(&release, &first).unwrap(), 1);
    }

    /// The store remembers what a service that starts again does not.
    #[test]
    fn an_earlier_policy_is_never_in_force_again() {
        let first = cluster_config(SOFTWARE_TPM, &master_secret());
        let later = JoinConfigExample {
            serial: 2,
            ..first.clone()
        };
        let (folder, running) = with(&first);
        assert_eq!(admitted(&running, &first).unwrap(), 1);
        assert_eq!(admitted(&running, &later).unwrap(), 2);
        for gate in [running, gate(&folder, SOFTWARE_TPM)] {
            let refused = admitted(&gate, &first);
            let Err(PolicyRefused::Advance(AdvancePolicyError::NotNewer(reason))) = refused else {
                panic!("{refused:?}")
            };
            assert_eq!(reason, NotNewerError::Older { seen: 2, presented: 1 });
            assert_eq!(admitted(&gate, &later).unwrap(), 2);
        }
    }

    #[test]
    fn without_a_store_nothing_is_in_force() {
        let folder = TempDir::new().unwrap();
        let first = cluster_config(SOFTWARE_TPM, &master_secret());
        let refused = admitted(&gate(&folder, SOFTWARE_TPM), &first);
        assert!(matches!(refused, Err(PolicyRefused::Advance(_))), "{refused:?}");
    }
}
