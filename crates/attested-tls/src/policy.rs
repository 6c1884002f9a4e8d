use std::sync::Arc;

use attestation::Verifiers;

/// What the other side of a session must be.
#[derive(Clone, Debug)]
pub enum PeerPolicy {
    /// It must attest, and the verdict must be affirming.
    Attested(Arc<Verifiers>),
    /// It does not attest. Only for the cases that the design lists.
    Unattested {
        /// Why this is acceptable.
        reason: &'static str,
    },
}
