//! The join configuration, reloaded when its files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::{
    AppraisalError, AttestationResult, Endorsements, Evidence, ExpectedMembership, ExpectedStatements,
    MeasuredStatements, Membership, ReportBinding, SetUpVerifierError, TrustBasis, UnixTime, Variants, Verifier,
};
use cluster_objects::{JoinConfig, LoadJoinConfigError};
use cluster_policy::{AdvancePolicyError, AnotherOperator, BelievedPolicy, PolicyStore};
use cluster_types::{ClusterId, MeasurementSalt, NodeRole, Variant};
use digest::Digest;
use error_report::Chain;
use tracing::{error, info};

/// The kubelet swaps mounted files within about a minute of a change. Looking this often adds little to that.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The current configuration, shared by everything that needs it.
#[derive(Clone)]
pub(crate) struct Config {
    folder: PathBuf,
    variants: &'static dyn Variants,
    anchor: Arc<TrustAnchor>,
    in_force: Arc<RwLock<Arc<CheckedConfig>>>,
}

/// What decides whether a policy is believed. No configuration says otherwise.
pub(crate) struct TrustAnchor {
    /// What this node has measured about itself.
    pub(crate) measured: MeasuredStatements,
    /// The newest policy that it has seen.
    pub(crate) store: PolicyStore,
}

/// A readable configuration whose policy may be anybody's.
pub(crate) struct UncheckedConfig {
    folder: PathBuf,
    config: JoinConfig,
}

/// A configuration, with a policy that the operator signed and that is not an earlier one.
pub(crate) struct CheckedConfig {
    pub(crate) config: JoinConfig,
    pub(crate) policy: BelievedPolicy,
    verifier: Box<dyn Verifier>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Config(#[from] LoadJoinConfigError),
    #[error("clusterPolicy of the join configuration is refused")]
    Operator(#[from] AnotherOperator),
    #[error(
        "clusterPolicy of the join configuration is for cluster {named}, whose control planes measure {expected}; this node measured \
         {shown}"
    )]
    AnotherCluster {
        named: ClusterId,
        expected: Digest,
        shown: Digest,
    },
    #[error("clusterPolicy of the join configuration has an image that cannot be appraised")]
    Verifier(#[from] SetUpVerifierError),
    #[error("clusterPolicy of the join configuration is refused")]
    Advance(#[from] AdvancePolicyError),
    #[error(
        "measurementSalt of the join configuration is refused: {new} is not {in_force}, and a cluster keeps its salt; run \
         `constellation apply`, which restores it"
    )]
    Salt {
        new: MeasurementSalt,
        in_force: MeasurementSalt,
    },
}

impl UncheckedConfig {
    pub(crate) fn load(folder: PathBuf) -> Result<Self> {
        let config = JoinConfig::load(&folder).with_context(|| unusable(&folder))?;
        Ok(Self { folder, config })
    }

    /// Puts it into force if the operator whom this node obeys has signed its policy.
    pub(crate) fn check(self, anchor: TrustAnchor, variants: &'static dyn Variants) -> Result<Config> {
        let Self { folder, config } = self;
        let in_force = CheckedConfig::check(config, &anchor, variants).with_context(|| unusable(&folder))?;
        Ok(Config {
            folder,
            variants,
            anchor: Arc::new(anchor),
            in_force: Arc::new(RwLock::new(Arc::new(in_force))),
        })
    }
}

fn unusable(folder: &Path) -> String {
    format!("--config: cannot use {}", folder.display())
}

impl Config {
    pub(crate) fn in_force(&self) -> Arc<CheckedConfig> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Never ends. If the configuration cannot be used, the old one remains in force.
    ///
    /// # Cancel safety
    /// A reload happens completely or not at all.
    pub(crate) async fn reload_on_change(self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.reload() {
                Ok(false) => {}
                Ok(true) => {
                    let in_force = self.in_force();
                    let images: Vec<_> = in_force.policy.images.iter().map(|image| image.image()).collect();
                    info!(serial = in_force.policy.serial, ?images, "join configuration reloaded");
                }
                Err(error) => {
                    error!(error = %Chain(&error), "cannot reload the join configuration; the old one stays in force")
                }
            }
        }
    }

    /// Whether another configuration is in force now.
    fn reload(&self) -> Result<bool, LoadError> {
        let new = JoinConfig::load(&self.folder)?;
        let old = self.in_force();
        if new == old.config {
            return Ok(false);
        }
        if new.measurement_salt != old.config.measurement_salt {
            return Err(LoadError::Salt {
                new: new.measurement_salt,
                in_force: old.config.measurement_salt,
            });
        }
        let new = CheckedConfig::check(new, &self.anchor, self.variants)?;
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(true)
    }
}

impl CheckedConfig {
    /// 1. The operator whom this node obeys has signed the policy, for the cluster of which this node is a control plane.
    /// 2. Its images can be appraised.
    /// 3. It is not earlier than one that has been in force here. From now on, no earlier one will be.
    fn check(config: JoinConfig, anchor: &TrustAnchor, variants: &dyn Variants) -> Result<Self, LoadError> {
        let MeasuredStatements { operator, membership } = &anchor.measured;
        let policy = config.policy.clone().believe(|signer| operator.is(signer))?;
        let control_plane = Membership::new(policy.cluster, NodeRole::ControlPlane);
        if !membership.is(&control_plane) {
            return Err(LoadError::AnotherCluster {
                named: policy.cluster,
                expected: membership.shown_by(&control_plane),
                shown: membership.shown(),
            });
        }
        // A node that joins or rejoins has not measured its membership yet; it does so with the contents of its ticket.
        let statements = ExpectedStatements {
            operator: *policy.operator(),
            membership: ExpectedMembership::New,
        };
        let verifier = policy.verifier(variants, &statements)?;
        anchor.store.advance(&policy)?;
        Ok(Self {
            config,
            policy,
            verifier,
        })
    }
}

/// Appraises joining nodes by the policy in force when they connect.
pub(crate) struct ConfiguredVerifier(Config);

impl ConfiguredVerifier {
    pub(crate) fn new(config: Config) -> Self {
        Self(config)
    }
}

impl Verifier for ConfiguredVerifier {
    fn variant(&self) -> Variant {
        self.0.in_force().verifier.variant()
    }

    fn trust(&self) -> TrustBasis {
        self.0.in_force().verifier.trust()
    }

    fn appraise(
        &self,
        evidence: &Evidence,
        endorsements: &Endorsements,
        binding: &ReportBinding,
        now: UnixTime,
    ) -> Result<AttestationResult, AppraisalError> {
        let in_force = self.0.in_force();
        in_force.verifier.appraise(evidence, endorsements, binding, now)
    }
}

#[cfg(test)]
mod tests {
    use attestation::Measured;
    use cluster_policy::NotNewerError;
    use cluster_types::OperatorPublicKey;
    use tempfile::TempDir;
    use test_machines::SOFTWARE_TPM;
    use test_services::{JoinConfigExample, mount};

    use super::*;

    fn store(folder: &TempDir) -> PolicyStore {
        PolicyStore::new(folder.path().join("newest"))
    }

    /// What a control plane of the example's cluster has measured.
    fn measured(example: &JoinConfigExample) -> MeasuredStatements {
        let nothing = Digest::new([0; 32]);
        let operator = |operator: &OperatorPublicKey| Digest::of(operator.as_bytes());
        let membership = |member: &Membership| Digest::of(&[member.cluster.as_bytes(), member.role.event()].concat());
        let member = Membership::new(example.cluster, NodeRole::ControlPlane);
        MeasuredStatements {
            operator: Measured::new("operator", operator(&example.operator().public()), nothing, operator),
            membership: Measured::new("membership", membership(&member), nothing, membership),
        }
    }

    /// The service starts on a control plane of the example's cluster, with whatever is mounted.
    fn start(folder: &TempDir, example: &JoinConfigExample) -> Result<Config> {
        let anchor = TrustAnchor {
            measured: measured(example),
            store: store(folder),
        };
        let unchecked = UncheckedConfig::load(folder.path().join("config"))?;
        unchecked.check(anchor, SOFTWARE_TPM.variants())
    }

    /// A service that runs with this configuration, on a node that has the first policy from its ticket.
    fn running(example: &JoinConfigExample) -> (TempDir, Config) {
        let folder = TempDir::new().unwrap();
        mount(&example.config(), &folder.path().join("config")).unwrap();
        store(&folder).write(&example.policy()).unwrap();
        let config = start(&folder, example).unwrap();
        (folder, config)
    }

    /// What a reload makes of it. Whatever is refused, the old configuration stays in force.
    fn reload(before: &JoinConfigExample, change: impl FnOnce(&mut JoinConfigExample)) -> Result<bool, LoadError> {
        let (folder, running) = running(before);
        let mut changed = before.clone();
        change(&mut changed);
        mount(&changed.config(), &folder.path().join("config")).unwrap();
        let result = running.reload();
        let expected = if result.is_ok() { &changed } else { before };
        assert_eq!(running.in_force().config, expected.config());
        result
    }

    fn example() -> JoinConfigExample {
        JoinConfigExample::of(SOFTWARE_TPM)
    }

    #[test]
    fn a_later_policy_is_taken_and_an_unchanged_one_is_no_news() {
        assert!(!reload(&example(), |_| {}).unwrap());
        assert!(reload(&example(), |later| later.serial += 1).unwrap());
        assert!(
            reload(&example(), |config| config.component_mirror =
                "http://10.0.2.2:2/mirror")
            .unwrap()
        );
    }

    /// Whoever edits the ConfigMap: a cluster-admin, or whoever runs etcd.
    #[test]
    fn a_policy_that_another_operator_signed_is_refused() {
        let refused = reload(&example(), |other| (other.operator_seed, other.serial) = ([8; 32], 9));
        assert!(matches!(refused, Err(LoadError::Operator(_))));
    }

    #[test]
    fn a_policy_for_another_cluster_of_the_operator_is_refused() {
        let refused = reload(&example(), |other| {
            (other.cluster, other.serial) = (ClusterId::new([9; 32]), 9)
        });
        assert!(matches!(refused, Err(LoadError::AnotherCluster { .. })));
    }

    /// The key service would refuse each ticket, also those of nodes that come back.
    #[test]
    fn another_salt_is_refused_while_the_service_runs() {
        let (folder, running) = running(&example());
        let mut changed = example().config();
        changed.measurement_salt = MeasurementSalt::new([9; 32]);
        mount(&changed, &folder.path().join("config")).unwrap();
        assert!(matches!(running.reload(), Err(LoadError::Salt { .. })));
        assert_eq!(running.in_force().config, example().config());
    }

    #[test]
    fn an_earlier_policy_is_refused() {
        let mut before = example();
        before.serial = 2;
        let refused = reload(&before, |earlier| earlier.serial = 1);
        assert!(matches!(
            refused,
            Err(LoadError::Advance(AdvancePolicyError::NotNewer(NotNewerError::Older {
                seen: 2,
                presented: 1
            })))
        ));
    }

    /// The store remembers what a service that starts again does not.
    #[test]
    fn a_policy_that_was_in_force_before_a_restart_is_not_taken_back() {
        let first = example();
        let (folder, before) = running(&first);
        let later = JoinConfigExample {
            serial: first.serial + 1,
            ..first.clone()
        };
        mount(&later.config(), &folder.path().join("config")).unwrap();
        assert!(before.reload().unwrap());

        mount(&first.config(), &folder.path().join("config")).unwrap();
        let error = format!("{:#}", start(&folder, &first).err().unwrap());
        assert!(error.contains("serial 1, but serial 2 has been in force"), "{error}");
        mount(&later.config(), &folder.path().join("config")).unwrap();
        assert!(start(&folder, &first).is_ok());
    }
}
