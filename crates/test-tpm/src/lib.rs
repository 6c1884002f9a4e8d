//! A software TPM per test, and quotes without a TPM.
//!
//! [`SoftwareTpm::start`] runs swtpm with a state folder of its own on a Unix socket and ends it on drop.
//! [`InProcessAttester`] gives Evidence of the same form without the time that a TPM takes. Nothing a release contains depends
//! on this crate; `xtask tidy` checks that.

mod in_process;
mod software_tpm;

pub use in_process::{InProcessAttester, verifier};
pub use software_tpm::SoftwareTpm;
