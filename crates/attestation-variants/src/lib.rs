//! What a release can attest and appraise, and what is special about each platform.
//!
//! A technology crate knows no platform; a platform's quirk lives here, next to its reason. Adding a variant means adding it
//! to [`ReleaseVariants`]; no program names one.

mod qemu_vtpm;

use std::sync::Arc;

use attestation::{
    AttesterSource, Expectations, MeasuringAttester, SetUpAttesterError, SetUpVerifierError, Variants, Verifier,
};
use cluster_types::Variant;

/// The variants of a release.
#[derive(Clone, Copy, Debug)]
pub struct ReleaseVariants;

impl Variants for ReleaseVariants {
    fn supported(&self) -> &[Variant] {
        &[Variant::QemuVtpm]
    }

    fn attester(&self, source: &AttesterSource) -> Result<Arc<dyn MeasuringAttester>, SetUpAttesterError> {
        qemu_vtpm::attester(source)
    }

    fn verifier(&self, variant: Variant, expectations: &Expectations) -> Result<Box<dyn Verifier>, SetUpVerifierError> {
        expectations.image.must_be_for(variant)?;
        match variant {
            Variant::QemuVtpm => qemu_vtpm::verifier(expectations),
            Variant::TestKey => Err(SetUpVerifierError::not_supported(variant, self.supported())),
        }
    }
}
