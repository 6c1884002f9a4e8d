//! An append-only log of JSON lines. Each line begins with the hash of the line before, also across files, so a record that is changed,
//! removed or put in between is found ([`verify`]). Files are rotated by size, and the oldest are deleted: a log never fills a disk.
//!
//! What the chain does not show: that its last records are missing, or that somebody who may write the files wrote the whole chain
//! again. Whoever wants to know that keeps a hash of it elsewhere.

mod chain;
mod log;

pub use chain::{BrokenChain, Chain, Problem, verify};
pub use log::{AuditLog, Limits};
