//! The join configuration, reloaded when its files change.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::{AppraisalError, AttestationResult, Evidence, ReportBinding, Verifier};
use attestation_tpm::{Membership, PcrPolicy};
use attestation_variants::qemu_vtpm;
use cluster_objects::JoinConfig;
use cluster_types::Variant;
use error_report::Chain;
use tracing::{error, info};

/// The kubelet swaps mounted files within about a minute of a change; looking this often adds nothing to that.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The configuration in force, shared by everything that needs it.
#[derive(Clone)]
pub(crate) struct Config {
    folder: PathBuf,
    current: Arc<RwLock<Arc<JoinConfig>>>,
}

impl Config {
    pub(crate) fn load(folder: PathBuf) -> Result<Self> {
        let config =
            JoinConfig::load(&folder).with_context(|| format!("--config: {} cannot be used", folder.display()))?;
        Ok(Self {
            folder,
            current: Arc::new(RwLock::new(Arc::new(config))),
        })
    }

    pub(crate) fn current(&self) -> Arc<JoinConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Never ends. A configuration that cannot be read leaves the old one in force: it is stricter than none.
    ///
    /// # Cancel safety
    /// A reload is done at once or not at all.
    pub(crate) async fn reload_on_change(self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match JoinConfig::load(&self.folder) {
                Ok(config) if config == *self.current() => {}
                Ok(config) => {
                    info!(image = config.reference_values.image(), "join configuration reloaded");
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                }
                Err(error) => error!(error = %Chain(&error), "join configuration not reloaded"),
            }
        }
    }
}

/// Appraises joining nodes by the reference values that are in force when they come.
pub(crate) struct ConfiguredVerifier(Config);

impl ConfiguredVerifier {
    pub(crate) fn new(config: Config) -> Self {
        Self(config)
    }
}

impl Verifier for ConfiguredVerifier {
    fn variant(&self) -> Variant {
        Variant::QemuVtpm
    }

    /// A node that joins or rejoins has measured no cluster id yet: it does so with what the ticket holds.
    fn appraise(&self, evidence: &Evidence, binding: &ReportBinding) -> Result<AttestationResult, AppraisalError> {
        let policy = PcrPolicy::new(self.0.current().reference_values.clone(), Membership::New);
        qemu_vtpm::verifier(policy).appraise(evidence, binding)
    }
}
