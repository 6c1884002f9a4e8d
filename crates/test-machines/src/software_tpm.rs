use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::Result;
use attestation::{AppraisalError, MeasuringAttester, Variants};
use attestation_tpm::{NotAuthentic, SocketTransport, Tpm, TpmAttester};
use attestation_variants::ReleaseVariants;
use cluster_types::Variant;
use measurements::{PcrIndex, PcrReferences, PcrValue, ReferenceValues};
use test_tpm::SoftwareTpm;

use crate::technology::{Machine, Technology};

/// Machines with a software TPM of their own.
pub const SOFTWARE_TPM: &dyn Technology = &TpmTechnology;

/// Nothing is measured into it before a machine is changed.
const IMAGE: PcrIndex = PcrIndex::new(11);
const FIRMWARE: PcrIndex = PcrIndex::new(1);
const VARIANT: Variant = Variant::QemuVtpm;

struct TpmTechnology;

struct TpmMachine {
    tpm: SoftwareTpm,
    /// It serves one connection, which is free again when nobody uses the attester.
    attester: Mutex<Weak<TpmAttester>>,
}

impl Technology for TpmTechnology {
    fn variant(&self) -> Variant {
        VARIANT
    }

    fn variants(&self) -> &'static dyn Variants {
        &ReleaseVariants
    }

    fn is_released(&self) -> bool {
        true
    }

    fn image(&self) -> ReferenceValues {
        let image = PcrReferences::new(PcrIndex::IMAGE.map(|index| (index, PcrValue::ZERO)).into());
        ReferenceValues::new(VARIANT, "image", &image.with_warning(FIRMWARE, PcrValue::ZERO))
    }

    fn power_on(&self) -> Result<Box<dyn Machine>> {
        Ok(Box::new(TpmMachine {
            tpm: SoftwareTpm::start()?,
            attester: Mutex::default(),
        }))
    }

    fn is_bound_to_something_else(&self, error: &AppraisalError) -> bool {
        let AppraisalError::NotAuthentic { source, .. } = error else {
            return false;
        };
        matches!(source.downcast_ref(), Some(NotAuthentic::Binding { .. }))
    }
}

impl TpmMachine {
    fn tpm(&self) -> Result<Arc<TpmAttester>> {
        let mut current = self.attester.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attester) = current.upgrade() {
            return Ok(attester);
        }
        let tpm = Tpm::new(SocketTransport::connect(&self.tpm.socket())?);
        let attester = Arc::new(TpmAttester::new(VARIANT, tpm)?);
        *current = Arc::downgrade(&attester);
        Ok(attester)
    }

    fn measure(&self, index: PcrIndex) -> Result<()> {
        Ok(self.tpm()?.with_tpm(|tpm| tpm.extend_with_event(index, &[1; 32]))?)
    }
}

impl Machine for TpmMachine {
    fn emulator(&self) -> PathBuf {
        self.tpm.socket()
    }

    fn attester(&self) -> Result<Arc<dyn MeasuringAttester>> {
        Ok(self.tpm()?)
    }

    fn change_image(&self) -> Result<()> {
        self.measure(IMAGE)
    }

    fn change_host(&self) -> Result<()> {
        self.measure(FIRMWARE)
    }
}
