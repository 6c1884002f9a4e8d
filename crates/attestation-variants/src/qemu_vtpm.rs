//! `qemu-vtpm`: a software TPM that the host runs for its VM.
//!
//! The host can read and change everything in such a TPM, so any key that looks like an attestation key is accepted and
//! the results say [`TrustBasis::HostSoftware`]. It exists to develop against and to try things out.

use std::path::Path;
use std::sync::Arc;

use attestation::{
    AttesterSource, Expectations, MeasuringAttester, SetUpAttesterError, SetUpVerifierError, TrustBasis, Verifier,
};
use attestation_tpm::{
    DeviceTransport, PcrPolicy, SetUpError, SocketTransport, Tpm, TpmAttester, TpmError, TpmVerifier,
};
use cluster_types::Variant;

const VARIANT: Variant = Variant::QemuVtpm;
/// The kernel's resource-managed TPM device.
const DEVICE: &str = "/dev/tpmrm0";

/// Attests with this machine's TPM, or the software TPM behind a socket.
pub(crate) fn attester(source: &AttesterSource) -> Result<Arc<dyn MeasuringAttester>, SetUpAttesterError> {
    match open(source) {
        Ok(attester) => Ok(Arc::new(attester)),
        Err(error) => Err(SetUpAttesterError {
            variant: VARIANT,
            source: error.into(),
        }),
    }
}

fn open(source: &AttesterSource) -> Result<TpmAttester, SetUpError> {
    let tpm = match source {
        AttesterSource::ThisMachine => DeviceTransport::open(Path::new(DEVICE)).map(Tpm::new),
        AttesterSource::Emulator(socket) => SocketTransport::connect(socket).map(Tpm::new),
    };
    TpmAttester::new(VARIANT, tpm.map_err(TpmError::from)?)
}

/// Appraises Evidence of this variant.
pub(crate) fn verifier(expectations: &Expectations) -> Result<Box<dyn Verifier>, SetUpVerifierError> {
    let policy = PcrPolicy::new(expectations).map_err(|error| SetUpVerifierError::ReferenceValues {
        variant: VARIANT,
        source: error.into(),
    })?;
    Ok(Box::new(TpmVerifier::new(VARIANT, TrustBasis::HostSoftware, policy)))
}
