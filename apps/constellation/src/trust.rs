//! What Evidence is worth to the person who relies on it.

use attestation::TrustBasis;
use terminal::Progress;

/// What a person must know before relying on such Evidence. `None` only if it protects from the host.
pub(crate) fn warning(trust: TrustBasis) -> Option<&'static str> {
    match trust {
        TrustBasis::HostSoftware => Some(
            "These nodes attest with hardware emulated by the host. This shows that the mechanisms work, but it does not \
             protect against the host.",
        ),
    }
}

/// Shows a warning on a line of its own, which no later progress replaces.
pub(crate) fn show(warning: Option<&str>, progress: &Progress) {
    if let Some(warning) = warning {
        progress.line(&format!("Note: {warning}"));
    }
}
