//! The roles and artifacts of remote attestation (RATS, RFC 9334), independent of any technology.
//!
//! An [`Attester`] produces [`Evidence`] over a [`ReportBinding`]; a [`Verifier`] appraises it against its own
//! ReferenceValues and gives an [`AttestationResult`]; a Relying Party releases something only for an [`Affirmed`].
//!
//! What this crate does not do: it has no sockets, files, clock or runtime. Nothing that the Evidence says chooses how
//! it is checked: the verifier of each variant is fixed before the first byte arrives.

mod binding;
mod evidence;
mod result;
mod verifiers;

pub use binding::{Direction, Nonce, Purpose, ReportBinding, SessionParts, UnknownPurpose};
pub use evidence::{Evidence, MAX_EVIDENCE_LEN, ParseEvidenceError};
pub use result::{Affirmed, AttestationResult, AttestedIdentity, Finding, NotAffirmed, Outcome, TrustBasis};
pub use verifiers::{AppraisalError, AttestError, Attester, Verifier, Verifiers};
