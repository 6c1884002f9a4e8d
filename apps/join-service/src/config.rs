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

/// The kubelet swaps mounted files within about a minute of a change. Looking this often adds little to that.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The current configuration, shared by everything that needs it.
#[derive(Clone)]
pub(crate) struct Config {
    folder: PathBuf,
    current: Arc<RwLock<Arc<JoinConfig>>>,
}

impl Config {
    pub(crate) fn load(folder: PathBuf) -> Result<Self> {
        let config = JoinConfig::load(&folder).with_context(|| format!("--config: cannot use {}", folder.display()))?;
        Ok(Self {
            folder,
            current: Arc::new(RwLock::new(Arc::new(config))),
        })
    }

    pub(crate) fn current(&self) -> Arc<JoinConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Never ends. If the configuration cannot be read, the old one remains in force.
    ///
    /// # Cancel safety
    /// A reload happens completely or not at all.
    pub(crate) async fn reload_on_change(self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match JoinConfig::load(&self.folder) {
                Ok(config) if config == *self.current() => {}
                Ok(config) => {
                    info!(image = config.reference_values.image(), "join configuration reloaded");
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                }
                Err(error) => error!(error = %Chain(&error), "cannot reload the join configuration"),
            }
        }
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
        Variant::QemuVtpm
    }

    /// A node that joins or rejoins has not measured a cluster id yet; it does so with the contents of its ticket.
    fn appraise(&self, evidence: &Evidence, binding: &ReportBinding) -> Result<AttestationResult, AppraisalError> {
        let policy = PcrPolicy::new(self.0.current().reference_values.clone(), Membership::New);
        qemu_vtpm::verifier(policy).appraise(evidence, binding)
    }
}
