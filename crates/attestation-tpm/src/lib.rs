//! TPM 2.0 quotes: made on a node, appraised anywhere.
//!
//! Structures and commands are those of the TCG "Trusted Platform Module Library", parts 2 and 3. [`Tpm`] and
//! [`TpmAttester`] do I/O with the device; [`TpmVerifier`] is pure.
//!
//! What this crate does not do: it knows no cloud. That a TPM's key belongs to a real machine is for
//! `attestation-variants` to establish.

mod appraise;
mod attester;
mod device;
mod evidence;
mod key;
mod policy;

pub use appraise::{NotAuthentic, TpmVerifier};
pub use attester::{SetUpError, TpmAttester};
pub use device::{DeviceTransport, SocketTransport, Tpm, TpmError, Transport};
pub use evidence::{MalformedEvidence, TpmEvidence};
pub use key::{AttestationKey, KeyNotAccepted};
pub use policy::{PcrPolicy, statements};
