//! `test-key`: an attestation variant that has nothing in common with a TPM.
//!
//! A machine is a file with a key, the digest of an image and the statements that the machine has made about itself. Its
//! Evidence is signed JSON, its claims are no registers, and its reference values end at a date. It shows that programs know
//! no technology. Nothing a release contains depends on this crate; `xtask tidy` checks that.

mod appraise;
mod attester;
mod key_file;
mod report;
mod variant;

use std::sync::Arc;

use attestation::{
    AttesterSource, Expectations, MeasuredStatements, MeasuringAttester, SetUpAttesterError, SetUpVerifierError,
    ShownStatements, Variants, Verifier,
};
use cluster_types::Variant;

pub use appraise::{KeyReferences, KeyVerifier, NotAuthentic};
pub use attester::KeyAttester;
pub use key_file::{KeyFile, KeyFileError};
pub use variant::VARIANT;

use crate::report::measured_if_shown;

/// This variant and no other.
#[derive(Clone, Copy, Debug)]
pub struct TestKeyVariants;

impl Variants for TestKeyVariants {
    fn supported(&self) -> &[Variant] {
        &[VARIANT]
    }

    fn attester(&self, source: &AttesterSource) -> Result<Arc<dyn MeasuringAttester>, SetUpAttesterError> {
        let attester = match source {
            AttesterSource::ThisMachine => Err(KeyFileError::NotAMachine),
            AttesterSource::Emulator(path) => KeyAttester::new(KeyFile::at(path)),
        };
        match attester {
            Ok(attester) => Ok(Arc::new(attester)),
            Err(error) => Err(SetUpAttesterError {
                variant: VARIANT,
                source: error.into(),
            }),
        }
    }

    fn verifier(&self, variant: Variant, expectations: &Expectations) -> Result<Box<dyn Verifier>, SetUpVerifierError> {
        expectations.image.must_be_for(variant)?;
        if variant != VARIANT {
            return Err(SetUpVerifierError::not_supported(variant, self.supported()));
        }
        match KeyVerifier::new(expectations) {
            Ok(verifier) => Ok(Box::new(verifier)),
            Err(error) => Err(SetUpVerifierError::ReferenceValues {
                variant,
                source: error.into(),
            }),
        }
    }

    fn statements(&self, variant: Variant, shown: &ShownStatements) -> Result<MeasuredStatements, SetUpVerifierError> {
        if variant == VARIANT {
            Ok(measured_if_shown(shown))
        } else {
            Err(SetUpVerifierError::not_supported(variant, self.supported()))
        }
    }
}
