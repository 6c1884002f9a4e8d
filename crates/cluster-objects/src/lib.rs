//! What our programs read and write in a running cluster: their configuration, node records, tokens.
//!
//! [`Cluster`] wraps a client with the few operations that our services need, so that one page shows what they may do. It
//! decides nothing about trust: callers bring attested identities and get stored facts.

mod bootstrap_token;
mod certificate_request;
mod claim;
mod components;
mod join_config;
mod node_record;

use kube::{Client, Config};

pub use bootstrap_token::{BootstrapToken, CreateBootstrapTokenError, joining_node_group};
pub use certificate_request::{Approval, Approver, CertificateRequestsError};
pub use components::{ReadComponentsError, components_config_map};
pub use join_config::{CLUSTER_POLICY, JOIN_CONFIG, JoinConfig, LoadJoinConfigError};
pub use node_record::{NodeRecordError, RECORDS_NAMESPACE, TokenUse};

/// A Kubernetes cluster, as one of our programs sees it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

/// There is no way to reach the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is neither a pod's service account nor a kubeconfig.
    #[error("cannot find a Kubernetes configuration")]
    Config(#[from] kube::config::InferConfigError),
    /// The configuration cannot be used.
    #[error("unusable Kubernetes configuration")]
    Client(#[from] kube::Error),
}

impl Cluster {
    /// Connects as this pod's service account, or with the kubeconfig in the environment variable `KUBECONFIG`.
    ///
    /// # Errors
    /// When there is no usable configuration.
    pub async fn connect() -> Result<Self, ConnectError> {
        // kube builds its own TLS configuration and asks for the process's provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = Config::infer().await?;
        Ok(Self {
            client: Client::try_from(config)?,
        })
    }

    /// Uses a client, with whatever rights it has.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }
}
