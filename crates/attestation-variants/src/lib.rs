//! What a release can attest and appraise, and what is special about each platform.
//!
//! A technology crate knows no platform; a platform's quirk lives here, next to its reason. Adding a variant means adding it
//! to [`ReleaseVariants`]; no program names one.

mod qemu_vtpm;

use std::sync::Arc;

use attestation::{
    AttesterSource, Expectations, MeasuredStatements, MeasuringAttester, SetUpAttesterError, SetUpVerifierError,
    ShownStatements, Variants, Verifier,
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

    fn statements(&self, variant: Variant, shown: &ShownStatements) -> Result<MeasuredStatements, SetUpVerifierError> {
        match variant {
            Variant::QemuVtpm => Ok(attestation_tpm::statements(shown)),
            Variant::TestKey => Err(SetUpVerifierError::not_supported(variant, self.supported())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use attestation::{ExpectedMembership, ExpectedStatements};
    use cluster_types::OperatorPublicKey;
    use measurements::ReferenceValues;

    use super::*;

    /// Whether the release has a verifier, which then refuses values that are no technology's.
    fn has_verifier(variant: Variant) -> bool {
        let expectations = Expectations {
            image: ReferenceValues::new(variant, "image", &()),
            statements: ExpectedStatements {
                operator: OperatorPublicKey::new([0; 32]),
                membership: ExpectedMembership::New,
            },
        };
        match ReleaseVariants.verifier(variant, &expectations).err() {
            Some(SetUpVerifierError::ReferenceValues { .. }) => true,
            Some(SetUpVerifierError::NotSupported { .. }) => false,
            other => panic!("{variant}: {other:?}"),
        }
    }

    #[test]
    fn the_supported_variants_are_those_that_have_a_verifier() {
        let supported: BTreeSet<_> = ReleaseVariants.supported().iter().copied().collect();
        let appraised = Variant::ALL.iter().copied().filter(|variant| has_verifier(*variant));
        assert_eq!(supported, appraised.collect());
    }

    #[test]
    fn the_default_is_the_variant_that_error_messages_give_as_an_example() {
        assert_eq!(ReleaseVariants.supported().first(), Variant::ALL.first());
    }
}
