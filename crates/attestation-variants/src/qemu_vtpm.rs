//! `qemu-vtpm`: a software TPM that the host runs for its VM.
//!
//! The host can read and change everything in such a TPM, so any key that looks like an attestation key is accepted and
//! the results say [`TrustBasis::HostSoftware`]. It exists to develop against and to try things out.

use std::path::Path;

use attestation::TrustBasis;
use attestation_tpm::{DeviceTransport, PcrPolicy, SetUpError, Tpm, TpmAttester, TpmVerifier};
use cluster_types::Variant;

/// The kernel's resource-managed TPM device.
pub const DEVICE: &str = "/dev/tpmrm0";

/// Attests with this machine's TPM.
///
/// # Errors
/// When there is no TPM or it fails.
pub fn attester() -> Result<TpmAttester, SetUpError> {
    let device = DeviceTransport::open(Path::new(DEVICE)).map_err(attestation_tpm::TpmError::from)?;
    attester_on(Tpm::new(device))
}

/// Attests with any TPM, for instance one of a test.
///
/// # Errors
/// When the TPM fails.
pub fn attester_on(tpm: Tpm) -> Result<TpmAttester, SetUpError> {
    TpmAttester::new(Variant::QemuVtpm, tpm)
}

/// Appraises Evidence of this variant.
#[must_use]
pub fn verifier(policy: PcrPolicy) -> TpmVerifier {
    TpmVerifier::new(Variant::QemuVtpm, TrustBasis::HostSoftware, policy)
}
