//! The join configuration, reloaded when its files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::{
    AppraisalError, AttestationResult, Endorsements, Evidence, Expectations, ExpectedMembership, ReportBinding,
    SetUpVerifierError, TrustBasis, UnixTime, Variants, Verifier,
};
use cluster_objects::{JoinConfig, LoadJoinConfigError};
use cluster_types::Variant;
use error_report::Chain;
use tracing::{error, info};

/// The kubelet swaps mounted files within about a minute of a change. Looking this often adds little to that.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The current configuration, shared by everything that needs it.
#[derive(Clone)]
pub(crate) struct Config {
    folder: PathBuf,
    variants: &'static dyn Variants,
    in_force: Arc<RwLock<Arc<InForce>>>,
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
}

impl Config {
    pub(crate) fn load(folder: PathBuf, variants: &'static dyn Variants) -> Result<Self> {
        let in_force = InForce::load(&folder, variants);
        let in_force = in_force.with_context(|| format!("--config: cannot use {}", folder.display()))?;
        Ok(Self {
            folder,
            variants,
            in_force: Arc::new(RwLock::new(Arc::new(in_force))),
        })
    }

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
            match InForce::load(&self.folder, self.variants) {
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
    fn load(folder: &Path, variants: &dyn Variants) -> Result<Self, LoadError> {
        let config = JoinConfig::load(folder)?;
        let expectations = Expectations {
            image: config.reference_values.clone(),
            membership: ExpectedMembership::New,
        };
        Ok(Self {
            verifier: variants.verifier(config.variant(), &expectations)?,
            config: Arc::new(config),
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
