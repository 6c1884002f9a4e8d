use std::path::PathBuf;
use std::sync::Arc;

use cluster_types::Variant;
use measurements::{AnotherVariant, ReferenceValues};

use crate::{ExpectedStatements, MeasuredStatements, MeasuringAttester, ShownStatements, Verifier};

/// The variants that a program can attest and appraise.
///
/// A release has those of `attestation-variants`. A test hands a program its own, so no test verifier is ever part of a
/// release.
pub trait Variants: Send + Sync {
    /// The variants, the default first. Never empty.
    fn supported(&self) -> &[Variant];

    /// Attests with the device at the source.
    ///
    /// # Errors
    /// When there is none, or it fails.
    fn attester(&self, source: &AttesterSource) -> Result<Arc<dyn MeasuringAttester>, SetUpAttesterError>;

    /// Appraises Evidence of this variant.
    ///
    /// # Errors
    /// When there is no verifier for it, or the reference values are not its own.
    fn verifier(&self, variant: Variant, expectations: &Expectations) -> Result<Box<dyn Verifier>, SetUpVerifierError>;

    /// What a machine of this variant has measured if its device shows this. Whoever told it decides what the answer is worth.
    ///
    /// # Errors
    /// When there is no verifier for the variant.
    fn statements(&self, variant: Variant, shown: &ShownStatements) -> Result<MeasuredStatements, SetUpVerifierError>;
}

/// The device that attests: the real one, or a stand-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttesterSource {
    /// The device of this machine.
    ThisMachine,
    /// A stand-in for a device, in tests and benches: a socket or a file, as the technology has it.
    Emulator(PathBuf),
}

/// What a node must prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectations {
    /// The image it booted.
    pub image: ReferenceValues,
    /// What it has said about itself by measuring it.
    pub statements: ExpectedStatements,
}

/// The machine cannot attest.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the {variant} device")]
pub struct SetUpAttesterError {
    /// The variant whose device was to attest.
    pub variant: Variant,
    /// What the device said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Nothing can be appraised.
#[derive(Debug, thiserror::Error)]
pub enum SetUpVerifierError {
    /// The program has no verifier for the variant.
    #[error("this program cannot appraise {variant}; it can appraise {supported}")]
    NotSupported {
        /// The requested variant.
        variant: Variant,
        /// The variants that the program has.
        supported: String,
    },
    /// The reference values are for another technology.
    #[error(transparent)]
    AnotherVariant(#[from] AnotherVariant),
    /// The technology cannot use its reference values.
    #[error("unusable reference values for {variant}")]
    ReferenceValues {
        /// The requested variant.
        variant: Variant,
        /// What is wrong with them.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl SetUpVerifierError {
    /// The program has verifiers only for other variants.
    #[must_use]
    pub fn not_supported(variant: Variant, supported: &[Variant]) -> Self {
        let names: Vec<_> = supported.iter().map(|variant| variant.as_str()).collect();
        Self::NotSupported {
            variant,
            supported: names.join(", "),
        }
    }
}
