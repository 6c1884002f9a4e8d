//! The roles and artifacts of remote attestation (RATS, RFC 9334), independent of any technology.
//!
//! An [`Attester`] produces [`Evidence`] over a [`ReportBinding`]; a [`Verifier`] appraises it against its
//! [`Expectations`] and gives an [`AttestationResult`]; a Relying Party releases something only for an [`Affirmed`].
//! What a technology says is a list of [`Claim`]s for people to read. What programs decide on has a type of its own here:
//! [`Outcome`], [`AttestedIdentity`] and [`MeasuredStatements`].
//!
//! What this crate does not do: it has no sockets, files, clock or runtime, and it knows no technology. Nothing that the
//! Evidence says chooses how it is checked: the verifier of each variant is fixed before the first byte arrives.

mod appraisal;
mod attester;
mod binding;
mod claim;
mod evidence;
mod measured;
mod membership;
mod result;
mod statements;
mod variants;

pub use appraisal::{AppraisalError, Endorsements, UnixTime, Verifier, Verifiers, any_of};
pub use attester::{AttestError, Attester, DeviceError, MeasuringAttester};
pub use binding::{
    BindingParts, Direction, Nonce, Purpose, ReportBinding, SessionEvidence, SessionParts, UnknownPurpose,
};
pub use claim::{Claim, ClaimValue, Comparison, Finding, Severity};
pub use evidence::{Evidence, MAX_EVIDENCE_LEN, ParseEvidenceError};
pub use measured::Measured;
pub use membership::{ExpectedMembership, Membership};
pub use result::{Affirmed, AttestationResult, AttestedIdentity, NotAffirmed, Outcome, TrustBasis};
pub use statements::{ExpectedStatements, MeasuredStatements, ShownStatements};
pub use variants::{AttesterSource, Expectations, SetUpAttesterError, SetUpVerifierError, Variants};
