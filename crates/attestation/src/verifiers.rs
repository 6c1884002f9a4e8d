use cluster_types::Variant;

use crate::{AttestationResult, Evidence, ReportBinding};

/// Produces Evidence about the machine it runs on (RFC 9334 section 4.1).
pub trait Attester: Send + Sync {
    /// The technology of the Evidence.
    fn variant(&self) -> Variant;

    /// Makes Evidence bound to these bytes. Blocks for as long as the device takes.
    ///
    /// # Errors
    /// When the device fails.
    fn attest(&self, binding: &ReportBinding) -> Result<Evidence, AttestError>;
}

/// The device could not produce Evidence.
#[derive(Debug, thiserror::Error)]
#[error("the {variant} device could not produce evidence")]
pub struct AttestError {
    /// The technology.
    pub variant: Variant,
    /// What the device said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Appraises Evidence of one variant (RFC 9334 section 4.1). Pure: no I/O, no clock.
pub trait Verifier: Send + Sync {
    /// The one technology it appraises.
    fn variant(&self) -> Variant;

    /// Checks that the Evidence is authentic and bound to `binding`, and compares it with the ReferenceValues.
    ///
    /// # Errors
    /// When the Evidence is malformed, not signed as it must be, or bound to something else.
    fn appraise(&self, evidence: &Evidence, binding: &ReportBinding) -> Result<AttestationResult, AppraisalError>;
}

/// Evidence that proves nothing: contraindicated without a closer look.
#[derive(Debug, thiserror::Error)]
pub enum AppraisalError {
    /// We have no verifier for it.
    #[error("evidence is of variant {0}, which is not accepted here")]
    VariantNotAccepted(Variant),
    /// The technology's own checks failed.
    #[error("{variant} evidence is not authentic")]
    NotAuthentic {
        /// The technology.
        variant: Variant,
        /// Which check failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a Relying Party accepts: at least one verifier, at most one for each variant.
pub struct Verifiers(Vec<Box<dyn Verifier>>);

impl Verifiers {
    /// Accepts exactly this.
    #[must_use]
    pub fn one(verifier: impl Verifier + 'static) -> Self {
        Self(vec![Box::new(verifier)])
    }

    /// Accepts another variant too. A variant that is already accepted gets the new verifier.
    #[must_use]
    pub fn and(mut self, verifier: impl Verifier + 'static) -> Self {
        self.0.retain(|old| old.variant() != verifier.variant());
        self.0.push(Box::new(verifier));
        self
    }

    /// The accepted variants.
    pub fn variants(&self) -> impl Iterator<Item = Variant> + '_ {
        self.0.iter().map(|verifier| verifier.variant())
    }

    /// Appraises with the verifier of the Evidence's variant.
    ///
    /// # Errors
    /// When there is none, or the Evidence is not authentic.
    pub fn appraise(&self, evidence: &Evidence, binding: &ReportBinding) -> Result<AttestationResult, AppraisalError> {
        self.0
            .iter()
            .find(|verifier| verifier.variant() == evidence.variant)
            .ok_or(AppraisalError::VariantNotAccepted(evidence.variant))?
            .appraise(evidence, binding)
    }
}

impl std::fmt::Debug for Verifiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.variants()).finish()
    }
}
