//! The join configuration, reloaded when its files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::{
    AppraisalError, AttestationResult, Endorsements, Evidence, Expectations, ExpectedMembership, ExpectedStatements,
    Measured, ReportBinding, SetUpVerifierError, TrustBasis, UnixTime, Variants, Verifier,
};
use cluster_objects::{JoinConfig, LoadJoinConfigError};
use cluster_types::{OperatorPublicKey, Variant};
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
    /// What this node has measured. No configuration says otherwise.
    operator: Measured<OperatorPublicKey>,
    in_force: Arc<RwLock<Arc<InForce>>>,
}

/// A usable configuration, not yet compared with the operator whom this node has measured.
pub(crate) struct UncheckedConfig {
    folder: PathBuf,
    variants: &'static dyn Variants,
    candidate: InForce,
}

/// A configuration, and the verifier that its reference values make.
struct InForce {
    config: Arc<JoinConfig>,
    verifier: Box<dyn Verifier>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Config(#[from] LoadJoinConfigError),
    #[error("referenceValues of the join configuration is invalid")]
    Verifier(#[from] SetUpVerifierError),
    #[error(
        "operatorPublicKey of the join configuration is {configured}, but this node obeys another operator: it measured {shown}, \
         expected {expected}"
    )]
    AnotherOperator {
        configured: OperatorPublicKey,
        shown: Digest,
        expected: Digest,
    },
}

impl UncheckedConfig {
    pub(crate) fn load(folder: PathBuf, variants: &'static dyn Variants) -> Result<Self> {
        let candidate = InForce::read(&folder, variants).with_context(|| unusable(&folder))?;
        Ok(Self {
            folder,
            variants,
            candidate,
        })
    }

    /// Takes it if it names the operator whom this node has measured.
    pub(crate) fn of_operator(self, operator: Measured<OperatorPublicKey>) -> Result<Config> {
        let Self {
            folder,
            variants,
            candidate,
        } = self;
        let in_force = candidate.of_operator(&operator).with_context(|| unusable(&folder))?;
        Ok(Config {
            folder,
            variants,
            operator,
            in_force: Arc::new(RwLock::new(Arc::new(in_force))),
        })
    }
}

fn unusable(folder: &Path) -> String {
    format!("--config: cannot use {}", folder.display())
}

impl Config {
    pub(crate) fn current(&self) -> Arc<JoinConfig> {
        self.in_force().config.clone()
    }

    fn in_force(&self) -> Arc<InForce> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Never ends. If the configuration cannot be read, the old one remains in force.
    ///
    /// # Cancel safety
    /// A reload happens completely or not at all.
    pub(crate) async fn reload_on_change(self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.reload() {
                Ok(false) => {}
                Ok(true) => {
                    let config = self.current();
                    let values = &config.reference_values;
                    info!(image = values.image(), variant = %values.variant(), "join configuration reloaded");
                }
                Err(error) => error!(error = %Chain(&error), "cannot reload the join configuration"),
            }
        }
    }

    /// Whether another configuration is in force now.
    fn reload(&self) -> Result<bool, LoadError> {
        let new = InForce::read(&self.folder, self.variants)?.of_operator(&self.operator)?;
        if new.config == self.current() {
            return Ok(false);
        }
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(true)
    }
}

impl InForce {
    /// A node that joins or rejoins has not measured its membership yet; it does so with the contents of its ticket.
    fn read(folder: &Path, variants: &dyn Variants) -> Result<Self, LoadError> {
        let config = JoinConfig::load(folder)?;
        let expectations = Expectations {
            image: config.reference_values.clone(),
            statements: ExpectedStatements {
                operator: config.operator_key,
                membership: ExpectedMembership::New,
            },
        };
        Ok(Self {
            verifier: variants.verifier(config.variant(), &expectations)?,
            config: Arc::new(config),
        })
    }

    fn of_operator(self, measured: &Measured<OperatorPublicKey>) -> Result<Self, LoadError> {
        let configured = self.config.operator_key;
        if measured.is(&configured) {
            return Ok(self);
        }
        Err(LoadError::AnotherOperator {
            configured,
            shown: measured.shown(),
            expected: measured.shown_by(&configured),
        })
    }
}

/// Appraises joining nodes by the reference values in force when they connect.
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
    use cluster_types::key_service::KeyServicePublicKey;
    use cluster_types::{KubernetesVersion, MeasurementSalt};
    use test_machines::SOFTWARE_TPM;
    use test_services::mount;

    use super::*;

    const OWN: OperatorPublicKey = OperatorPublicKey::new([1; 32]);

    fn config(operator: OperatorPublicKey, version: &str) -> JoinConfig {
        JoinConfig {
            reference_values: SOFTWARE_TPM.image(),
            measurement_salt: MeasurementSalt::new([5; 32]),
            operator_key: operator,
            key_service_key: KeyServicePublicKey::new([7; 32]),
            api_server_endpoint: "10.42.1.100:6443".parse().unwrap(),
            kubernetes_version: version.parse::<KubernetesVersion>().unwrap(),
            components: format!("k8s-components-sha256-{}", "ab".repeat(32)),
            component_mirror: String::new(),
        }
    }

    /// Whoever edits the ConfigMap while the service runs.
    #[test]
    fn a_reload_takes_no_other_operators_configuration() {
        let folder = tempfile::tempdir().unwrap();
        mount(&config(OWN, "v1.35.4"), folder.path()).unwrap();
        let shown = |operator: &OperatorPublicKey| Digest::of(operator.as_bytes());
        let measured = Measured::new("register", shown(&OWN), Digest::new([0; 32]), shown);
        let unchecked = UncheckedConfig::load(folder.path().to_owned(), SOFTWARE_TPM.variants()).unwrap();
        let in_force = unchecked.of_operator(measured).unwrap();
        assert!(!in_force.reload().unwrap());

        mount(&config(OperatorPublicKey::new([2; 32]), "v1.35.5"), folder.path()).unwrap();
        let refused = in_force.reload();
        assert!(matches!(refused, Err(LoadError::AnotherOperator { .. })));
        assert_eq!(*in_force.current(), config(OWN, "v1.35.4"));

        mount(&config(OWN, "v1.35.5"), folder.path()).unwrap();
        assert!(in_force.reload().unwrap());
        assert_eq!(*in_force.current(), config(OWN, "v1.35.5"));
    }
}
