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

/// A configuration that can be used, by whomever it is.
pub(crate) struct ReadConfig {
    folder: PathBuf,
    variants: &'static dyn Variants,
    read: InForce,
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

impl ReadConfig {
    pub(crate) fn from(folder: PathBuf, variants: &'static dyn Variants) -> Result<Self> {
        let read = InForce::read(&folder, variants);
        let read = read.with_context(|| format!("--config: cannot use {}", folder.display()))?;
        Ok(Self { folder, variants, read })
    }

    /// Takes it if it names the operator whom this node has measured.
    pub(crate) fn of_operator(self, operator: Measured<OperatorPublicKey>) -> Result<Config> {
        let Self { folder, variants, read } = self;
        let in_force = read.of_operator(&operator);
        let in_force = in_force.with_context(|| format!("--config: cannot use {}", folder.display()))?;
        Ok(Config {
            folder,
            variants,
            operator,
            in_force: Arc::new(RwLock::new(Arc::new(in_force))),
        })
    }
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
            let read = InForce::read(&self.folder, self.variants);
            match read.and_then(|read| read.of_operator(&self.operator)) {
                Ok(new) if new.config == self.current() => {}
                Ok(new) => {
                    let values = &new.config.reference_values;
                    info!(image = values.image(), variant = %values.variant(), "join configuration reloaded");
                    *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                }
                Err(error) => error!(error = %Chain(&error), "cannot reload the join configuration"),
            }
        }
    }
}

impl InForce {
    /// A node that joins or rejoins has not measured a cluster id yet; it does so with the contents of its ticket.
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
