//! What the platform tells a node: who it is, who its peers are, where the API server is.
//!
//! # Security
//! The platform is the adversary, so every answer is a hint. It may select among things that are checked afterwards
//! against something attested or signed, but it never decides anything alone. A lie costs availability and nothing else.
//! Sizes, times and forms are checked here, so that a hint is at least well-formed.

mod address;
mod fetch;
mod instance;
mod network;
mod qemu;

use std::pin::Pin;

use cluster_types::OperatorPublicKey;

pub use address::{ApiEndpoint, NotPrivate, PrivateAddress};
pub use fetch::MetadataError;
pub use instance::{InitSecretHash, Instance, ParseMetadataError};
pub use network::{NodeNetwork, OutsideNodeNetwork};
pub use qemu::{BASE_ADDRESS_FILE, FindMetadataError, QemuMetadata};

/// An answer that is being fetched.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, MetadataError>> + Send + 'a>>;

/// The metadata service of a platform.
pub trait CloudMetadata: Send + Sync {
    /// What the platform says of the node that asks.
    fn this_node(&self) -> Answer<'_, Instance>;

    /// All nodes of the cluster, this one included.
    fn peers(&self) -> Answer<'_, Vec<Instance>>;

    /// Where nodes reach the API server.
    fn api_endpoint(&self) -> Answer<'_, ApiEndpoint>;

    /// How nodes reach each other and a resolver.
    fn network(&self) -> Answer<'_, NodeNetwork>;

    /// The SHA-256 of this node's init secret.
    fn init_secret_hash(&self) -> Answer<'_, InitSecretHash>;

    /// The operator who created this node.
    fn operator_key(&self) -> Answer<'_, OperatorPublicKey>;

    /// Base address of the mirror that the platform offers to nodes. What it serves is pinned by hashes.
    fn mirror(&self) -> String;
}
