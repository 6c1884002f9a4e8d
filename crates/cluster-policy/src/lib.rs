//! The cluster policy: whom a cluster admits, whom its nodes believe and what they install, signed by the operator.
//!
//! A policy may be stored and served anywhere. It is believed only with the signature of the operator whom the believer obeys
//! ([`SignedPolicy::believe`]), and where a policy was in force before, only if it is not an earlier one ([`PolicyStore`]).

mod policy;
mod signed;
mod store;

pub use policy::{AnotherCluster, ClusterPolicy, Release, UnlistedRelease};
pub use signed::{AnotherOperator, BelievedPolicy, ParsePolicyError, RefusedPolicy, SignedPolicy};
pub use store::{NotNewerError, PolicyStore, RaisePolicyError};
