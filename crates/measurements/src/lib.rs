//! PCRs and the document of ReferenceValues (RFC 9334 section 8.3).
//!
//! Only the SHA-256 bank exists here: with a second or weaker bank, a peer could choose for us.
//! There is no I/O; callers bring bytes and files.

mod pcr;
mod pcr_references;
mod reference;

pub use pcr::{PcrIndex, PcrIndexOutOfRange, PcrValue, PcrValues};
pub use pcr_references::{Enforcement, PcrReferences, ReferenceValue};
pub use reference::{AnotherVariant, ParseReferenceValuesError, ReferenceValues};
