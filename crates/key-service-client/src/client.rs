use std::io;
use std::path::Path;
use std::time::Duration;

use attestation::{Nonce, Purpose, SessionEvidence};
use attested_tls::NonceSource;
use backon::{ConstantBuilder, Retryable};
use cluster_policy::BelievedPolicy;
use cluster_types::{DiskUuid, MeasurementSalt, NodeRole, SealingPublicKey};
use grpc_api::kms;
use grpc_api::kms::api_client::ApiClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Time limit for one attempt.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The key service may start just before its first call. Only requests for nonces are repeated: a nonce is good for one decision.
const DELAYS: ConstantBuilder = ConstantBuilder::new()
    .with_delay(Duration::from_secs(1))
    .with_max_times(4);

/// A client of the key service of this control plane.
#[derive(Clone)]
pub struct KeyServiceClient {
    channel: Channel,
}

/// The policy by which the key service is to decide, and the salt that ties it to the cluster.
#[derive(Clone, Copy)]
pub struct PresentedPolicy<'a> {
    /// Signed by the operator.
    pub policy: &'a BelievedPolicy,
    /// One input of the cluster id.
    pub measurement_salt: &'a MeasurementSalt,
}

/// The role that a new node requests.
#[derive(Clone, Copy, Debug)]
pub enum WantedRole<'a> {
    /// Needs no grant.
    Worker,
    /// With the role grant that the node presented.
    ControlPlane(&'a [u8]),
}

/// The key service released nothing.
#[derive(Debug, thiserror::Error)]
pub enum KeyServiceError {
    /// It refused the node's role grant.
    #[error("{0}")]
    GrantRefused(String),
    /// A decision was made in this session before.
    #[error("this session has had its decision; open another one")]
    SecondDecision,
    /// It refused something else, or did not answer.
    #[error("the key service refused or did not answer: {}", .0.message())]
    Refused(Status),
    /// Nodes whose Evidence covers no key cannot get anything.
    #[error("the node offers no key to which its secrets can be sealed")]
    NoSealingKey,
    /// Not a nonce.
    #[error("the key service's nonce has {0} bytes, expected 32")]
    Nonce(usize),
}

impl From<KeyServiceError> for io::Error {
    fn from(error: KeyServiceError) -> Self {
        Self::other(error)
    }
}

impl KeyServiceClient {
    /// Will connect to this socket when the first call is made.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            channel: unix_grpc::channel(socket, TIMEOUT),
        }
    }

    /// Draws a nonce for the Evidence of one session.
    ///
    /// # Errors
    /// When the key service fails. While it cannot be reached, the request is repeated for a few seconds.
    pub async fn nonce(&self, purpose: Purpose) -> Result<Nonce, KeyServiceError> {
        let request = kms::DrawNonceRequest {
            purpose: purpose.to_string(),
        };
        let ask = || async { self.api().draw_nonce(request.clone()).await };
        let response = ask.retry(DELAYS).when(is_out_of_reach).await;
        let kms::DrawNonceResponse { nonce } = response.map_err(KeyServiceError::Refused)?.into_inner();
        let bytes = nonce.as_slice().try_into();
        bytes.map(Nonce::new).map_err(|_| KeyServiceError::Nonce(nonce.len()))
    }

    /// The sealed secrets of a node that is new to the cluster.
    ///
    /// # Errors
    /// When the key service does not admit it, or fails.
    pub async fn admit(
        &self,
        node: &SessionEvidence,
        policy: PresentedPolicy<'_>,
        role: WantedRole<'_>,
    ) -> Result<Vec<u8>, KeyServiceError> {
        let (is_control_plane, role_grant) = match role {
            WantedRole::Worker => (false, Vec::new()),
            WantedRole::ControlPlane(grant) => (true, grant.to_vec()),
        };
        let request = kms::AdmitNodeRequest {
            session: Some(session(node)?),
            policy: Some(message_of(policy)),
            is_control_plane,
            role_grant,
        };
        let kms::AdmitNodeResponse { sealed_secrets } = released(self.api().admit_node(request).await)?;
        Ok(sealed_secrets)
    }

    /// The sealed secrets with which a member opens its state disk, if it has this role.
    ///
    /// # Errors
    /// When the key service does not readmit it, or fails.
    pub async fn readmit(
        &self,
        node: &SessionEvidence,
        policy: PresentedPolicy<'_>,
        disk: DiskUuid,
        role: NodeRole,
    ) -> Result<Vec<u8>, KeyServiceError> {
        let request = kms::ReadmitNodeRequest {
            session: Some(session(node)?),
            policy: Some(message_of(policy)),
            disk_uuid: disk.to_string(),
            is_control_plane: role == NodeRole::ControlPlane,
        };
        let kms::ReadmitNodeResponse { sealed_secrets } = released(self.api().readmit_node(request).await)?;
        Ok(sealed_secrets)
    }

    fn api(&self) -> ApiClient<Channel> {
        ApiClient::new(self.channel.clone())
    }
}

/// Sessions whose Evidence the key service will appraise.
#[tonic::async_trait]
impl NonceSource for KeyServiceClient {
    async fn draw(&self, purpose: Purpose) -> io::Result<Nonce> {
        Ok(self.nonce(purpose).await?)
    }
}

fn is_out_of_reach(status: &Status) -> bool {
    status.code() == Code::Unavailable
}

fn released<T>(response: Result<tonic::Response<T>, Status>) -> Result<T, KeyServiceError> {
    match response {
        Ok(response) => Ok(response.into_inner()),
        Err(status) if status.code() == Code::PermissionDenied => {
            Err(KeyServiceError::GrantRefused(status.message().into()))
        }
        Err(status) if status.code() == Code::Aborted => Err(KeyServiceError::SecondDecision),
        Err(status) => Err(KeyServiceError::Refused(status)),
    }
}

fn session(node: &SessionEvidence) -> Result<kms::SessionEvidence, KeyServiceError> {
    let parts = &node.parts;
    let sealing_key = parts.sealing_key.as_ref().map(SealingPublicKey::as_bytes);
    Ok(kms::SessionEvidence {
        evidence: node.evidence.encode(),
        purpose: parts.purpose.to_string(),
        exporter: parts.exporter.to_vec(),
        node_leaf: parts.attester_leaf.as_bytes().to_vec(),
        service_leaf: parts.verifier_leaf.as_bytes().to_vec(),
        nonce: parts.nonce.as_bytes().to_vec(),
        sealing_key: sealing_key.ok_or(KeyServiceError::NoSealingKey)?.to_vec(),
    })
}

fn message_of(presented: PresentedPolicy<'_>) -> kms::PresentedPolicy {
    let PresentedPolicy {
        policy,
        measurement_salt,
    } = presented;
    kms::PresentedPolicy {
        cluster_policy: policy.as_bytes().to_vec(),
        measurement_salt: measurement_salt.as_bytes().to_vec(),
    }
}
