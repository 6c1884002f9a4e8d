use cluster_types::{OperatorPublicKey, Variant};
use measurements::ReferenceValues;

use crate::{AttestedIdentity, BindingParts, Evidence, Measured, MeasuredStatements, Membership};

/// Produces Evidence about the machine it runs on (RFC 9334 section 4.1).
pub trait Attester: Send + Sync {
    /// The technology of the Evidence.
    fn variant(&self) -> Variant;

    /// Makes Evidence bound to these parts. Blocks for as long as the device takes.
    ///
    /// # Errors
    /// When the device fails, or this attester is for something else.
    fn attest(&self, parts: &BindingParts) -> Result<Evidence, AttestError>;
}

/// The device could not produce Evidence.
#[derive(Debug, thiserror::Error)]
#[error("the {variant} device cannot produce evidence")]
pub struct AttestError {
    /// The variant whose device it is.
    pub variant: Variant,
    /// What the device said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The attester of a node, which also measures what the node becomes. Every call blocks for as long as the device takes.
pub trait MeasuringAttester: Attester {
    /// Who verifiers will say this machine is.
    fn identity(&self) -> AttestedIdentity;

    /// The reference values of the image that this machine runs, as the device knows it.
    ///
    /// # Errors
    /// When the device fails.
    fn own_image(&self) -> Result<ReferenceValues, DeviceError>;

    /// What was measured since power-on.
    ///
    /// # Errors
    /// When the device fails.
    fn statements(&self) -> Result<MeasuredStatements, DeviceError>;

    /// What this machine has measured that it is part of.
    ///
    /// # Errors
    /// When the device fails.
    fn membership(&self) -> Result<Measured<Membership>, DeviceError> {
        Ok(self.statements()?.membership)
    }

    /// Measures whom this machine obeys. It cannot be taken back before the next power-on.
    ///
    /// # Errors
    /// When the device fails.
    fn measure_operator(&self, operator: &OperatorPublicKey) -> Result<(), DeviceError>;

    /// Measures that this machine becomes a member. It cannot be taken back before the next power-on.
    ///
    /// # Errors
    /// When the device fails.
    fn measure_membership(&self, membership: &Membership) -> Result<(), DeviceError>;
}

/// The device could not be read or measured into.
#[derive(Debug, thiserror::Error)]
#[error("the {variant} device failed")]
pub struct DeviceError {
    /// The variant whose device it is.
    pub variant: Variant,
    /// What the device said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
