use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use attestation::{AppraisalError, MeasuringAttester, Variants};
use cluster_types::{OperatorPublicKey, Variant};
use measurements::ReferenceValues;

use crate::operator;

/// How tests make machines of one variant. All machines of a technology run the same image until one is changed.
pub trait Technology: Send + Sync {
    /// The variant of its machines.
    fn variant(&self) -> Variant;

    /// What programs under test can attest and appraise.
    fn variants(&self) -> &'static dyn Variants;

    /// Whether this is a technology that releases have, so that a program under test can be the very one that is released.
    fn is_released(&self) -> bool;

    /// What the image of all machines shows.
    fn image(&self) -> ReferenceValues;

    /// A new machine, which has said nothing about itself.
    ///
    /// # Errors
    /// When its device does not come up.
    fn power_on(&self) -> Result<Box<dyn Machine>>;

    /// A new machine of this operator, which is in no cluster.
    ///
    /// # Errors
    /// When its device does not come up.
    fn boot_for(&self, operator: &OperatorPublicKey) -> Result<Box<dyn Machine>> {
        let machine = self.power_on()?;
        machine.attester()?.measure_operator(operator)?;
        Ok(machine)
    }

    /// A new machine of the operator of tests, which is in no cluster.
    ///
    /// # Errors
    /// When its device does not come up.
    fn boot(&self) -> Result<Box<dyn Machine>> {
        self.boot_for(&operator())
    }

    /// Whether Evidence was refused because it is bound to something else, and for no other reason.
    fn is_bound_to_something_else(&self, error: &AppraisalError) -> bool;
}

/// A machine with a device that attests.
pub trait Machine: Send + Sync {
    /// Where a program finds what stands in for the device. Only one may use it at a time.
    fn emulator(&self) -> PathBuf;

    /// The machine's own attester, which uses the device.
    ///
    /// # Errors
    /// When the device fails.
    fn attester(&self) -> Result<Arc<dyn MeasuringAttester>>;

    /// Makes the machine look like one that booted another image.
    ///
    /// # Errors
    /// When the device fails.
    fn change_image(&self) -> Result<()>;

    /// Changes what may differ between hosts.
    ///
    /// # Errors
    /// When the device fails.
    fn change_host(&self) -> Result<()>;
}
