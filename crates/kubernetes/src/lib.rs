//! Typed access to the Kubernetes objects we own.
//!
//! [`Cluster`] wraps a client with the few operations that our services need, so that what they may do can be read off
//! one page. It decides nothing about trust: callers bring attested identities and get stored facts.

mod bootstrap_token;
mod caller;
mod node_record;

use kube::Client;

pub use bootstrap_token::{BootstrapToken, CreateBootstrapTokenError};
pub use caller::{Caller, ReviewTokenError};
pub use node_record::{NodeRecordError, RECORDS_NAMESPACE};

/// Where our services and their configuration live.
pub const NAMESPACE: &str = "kube-system";

/// A Kubernetes cluster, as one of our programs sees it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// Uses a client with whatever rights it has.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }
}
