use std::path::Path;
use std::time::Duration;

use attestation::{
    AttestError, Attester, BindingParts, Direction, Evidence, Nonce, ParseEvidenceError, SessionParts, ShownStatements,
};
use backon::{ConstantBuilder, Retryable};
use cluster_types::{ParseVariantError, Variant};
use digest::Digest;
use grpc_api::attestation::api_client::ApiClient;
use grpc_api::attestation::{
    AttestNonceRequest, AttestNonceResponse, AttestSessionRequest, AttestSessionResponse, DescribeRequest,
    DescribeResponse,
};
use tokio::runtime::Handle;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Time limit for one call. Others may wait for the device too.
const LIMIT: Duration = Duration::from_secs(60);
/// The daemon may have been restarted just now.
const DELAYS: ConstantBuilder = ConstantBuilder::new()
    .with_delay(Duration::from_secs(1))
    .with_max_times(4);

/// The device of this node, as far as the daemon lets its caller use it.
pub struct AttestationDaemon {
    variant: Variant,
    shown: ShownStatements,
    channel: Channel,
    runtime: Handle,
}

/// The daemon did not say what it attests with.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// It refused or did not answer.
    #[error("the attestation daemon refused or did not answer: {}", .0.message())]
    Refused(#[from] Status),
    /// It is of another version than this program.
    #[error(transparent)]
    Variant(#[from] ParseVariantError),
    /// A digest of another length.
    #[error("{what} of the attestation daemon has {actual} bytes, expected 32")]
    Length {
        /// What it is, as in the message.
        what: &'static str,
        /// Its length in bytes.
        actual: usize,
    },
}

/// The daemon made no Evidence.
#[derive(Debug, thiserror::Error)]
enum NoEvidence {
    #[error("the attestation daemon refused or did not answer: {}", .0.message())]
    Refused(#[from] Status),
    #[error("the attestation daemon attests neither for clients nor for keys to which secrets are sealed")]
    NotForServices,
    #[error("the attestation daemon's evidence cannot be read")]
    Parse(#[from] ParseEvidenceError),
}

impl AttestationDaemon {
    /// Asks what it attests with. While it cannot be reached, that is repeated for a few seconds.
    ///
    /// # Errors
    /// When it does not answer, or with something else.
    pub async fn connect(socket: &Path) -> Result<Self, DescribeError> {
        let channel = unix_grpc::channel(socket, LIMIT);
        let ask = || async { ApiClient::new(channel.clone()).describe(DescribeRequest {}).await };
        let described = ask
            .retry(DELAYS)
            .when(|status| status.code() == Code::Unavailable)
            .await?;
        let DescribeResponse {
            variant,
            operator,
            membership,
        } = described.into_inner();
        Ok(Self {
            variant: variant.parse()?,
            shown: ShownStatements {
                operator: digest("operator", &operator)?,
                membership: digest("membership", &membership)?,
            },
            channel,
            runtime: Handle::current(),
        })
    }

    /// What the machine had measured when the daemon was asked.
    #[must_use]
    pub fn shown(&self) -> &ShownStatements {
        &self.shown
    }

    async fn session(&self, parts: &SessionParts) -> Result<Evidence, NoEvidence> {
        let SessionParts {
            direction: Direction::Server,
            exporter,
            attester_leaf,
            verifier_leaf,
            nonce,
            purpose,
            sealing_key: None,
        } = parts
        else {
            return Err(NoEvidence::NotForServices);
        };
        let request = AttestSessionRequest {
            purpose: purpose.to_string(),
            exporter: exporter.to_vec(),
            own_leaf: attester_leaf.as_bytes().to_vec(),
            peer_leaf: verifier_leaf.as_bytes().to_vec(),
            nonce: nonce.as_bytes().to_vec(),
        };
        let AttestSessionResponse { evidence } = self.api().attest_session(request).await?.into_inner();
        Ok(Evidence::parse(&evidence)?)
    }

    async fn nonce(&self, nonce: &Nonce) -> Result<Evidence, NoEvidence> {
        let request = AttestNonceRequest {
            nonce: nonce.as_bytes().to_vec(),
        };
        let AttestNonceResponse { evidence } = self.api().attest_nonce(request).await?.into_inner();
        Ok(Evidence::parse(&evidence)?)
    }

    fn api(&self) -> ApiClient<Channel> {
        ApiClient::new(self.channel.clone())
    }
}

impl Attester for AttestationDaemon {
    fn variant(&self) -> Variant {
        self.variant
    }

    /// # Panics
    /// On a thread that runs asynchronous tasks: it blocks.
    fn attest(&self, parts: &BindingParts) -> Result<Evidence, AttestError> {
        let evidence = self.runtime.block_on(async {
            match parts {
                BindingParts::Session(parts) => self.session(parts).await,
                BindingParts::Nonce(nonce) => self.nonce(nonce).await,
            }
        });
        evidence.map_err(|error| AttestError {
            variant: self.variant,
            source: error.into(),
        })
    }
}

fn digest(what: &'static str, bytes: &[u8]) -> Result<Digest, DescribeError> {
    let array = <[u8; 32]>::try_from(bytes);
    array.map(Digest::new).map_err(|_| DescribeError::Length {
        what,
        actual: bytes.len(),
    })
}
