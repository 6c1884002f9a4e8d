//! The cluster policy: which images a cluster admits and what its nodes install, signed by the operator.
//!
//! A policy may be stored and served anywhere. It is believed only with the signature of the operator whom the believer obeys
//! ([`SignedPolicy::believe`]), and where a policy was in force before, only if it is not an earlier one ([`PolicyStore`]).

mod policy;
mod signed;
mod store;

pub use policy::{AnotherCluster, ClusterPolicy, Release, UnlistedRelease};
pub use signed::{AnotherOperator, BelievedPolicy, ParsePolicyError, RefusePolicyError, SignedPolicy};
pub use store::{AdvancePolicyError, NotNewerError, PolicyStore};
