//! A software TPM per test.
//!
//! [`SoftwareTpm::start`] runs swtpm with a state folder of its own on a Unix socket and ends it on drop. It knows nothing of
//! ours, so that the TPM technology itself can be tested with it. Nothing a release contains depends on this crate;
//! `xtask tidy` checks that.

mod software_tpm;

pub use software_tpm::SoftwareTpm;
