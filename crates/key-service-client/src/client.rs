use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use cluster_types::Service;
use cluster_types::key_service::KeyServicePublicKey;
use grpc_api::kms::api_client::ApiClient;
use grpc_api::kms::{GetDataKeyRequest, GetDataKeyResponse, GetMasterSecretRequest, GetMasterSecretResponse};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use secret::SecretBytes;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::identity::client_config;

/// Time limit for one attempt, and for connecting.
const TIMEOUT: Duration = Duration::from_secs(20);
/// In a new cluster, the key service and the cluster's DNS start just before they are needed, and a node that is refused comes
/// back only later, with new Evidence.
const DELAYS: ConstantBuilder = ConstantBuilder::new()
    .with_delay(Duration::from_secs(1))
    .with_max_times(4);

/// A client of the key service.
pub struct KeyServiceClient {
    channel: Channel,
    token: PathBuf,
}

/// The key service handed out no usable key.
#[derive(Debug, thiserror::Error)]
pub enum KeyServiceError {
    /// The service-account token cannot be read.
    #[error("cannot read the service-account token {path}")]
    Token {
        /// The file in which the kubelet should have stored it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The token contains characters that are invalid in a token.
    #[error("the service-account token {0} is malformed")]
    MalformedToken(PathBuf),
    /// The key service refused or could not be reached.
    #[error("the key service did not hand out the key")]
    Refused(#[from] Status),
    /// The key does not have the requested length.
    #[error("the key service handed out {0} bytes, expected 32")]
    Length(usize),
}

impl KeyServiceClient {
    /// Will connect to `address` (`host:port`) when the first key is needed, and read the token from a file each time,
    /// because the kubelet renews it there.
    ///
    /// # Errors
    /// When the address is not `host:port`.
    pub fn new(address: &str, pinned: KeyServicePublicKey, token: PathBuf) -> Result<Self, tonic::transport::Error> {
        let config = client_config(pinned);
        // The scheme is http, because we do TLS ourselves and tonic must not add its own.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .timeout(TIMEOUT)
            .connect_timeout(TIMEOUT);
        let connector = tower::service_fn(move |uri: Uri| connect(config.clone(), uri));
        Ok(Self {
            channel: endpoint.connect_with_connector_lazy(connector),
            token,
        })
    }

    /// Fetches a key of 32 bytes by its id.
    ///
    /// # Errors
    /// When this caller may not have it, or the key service fails. If it cannot be reached, it is tried again for a few seconds.
    pub async fn data_key(&self, id: &str) -> Result<[u8; 32], KeyServiceError> {
        let request = GetDataKeyRequest {
            data_key_id: id.to_owned(),
            length: 32,
        };
        let ask = || async {
            let request = self.authenticated(request.clone()).await?;
            Ok(ApiClient::new(self.channel.clone()).get_data_key(request).await?)
        };
        let response = ask.retry(DELAYS).when(is_out_of_reach).await?;
        let GetDataKeyResponse { data_key } = response.into_inner();
        let key = SecretBytes::from_vec(data_key);
        key.expose()
            .try_into()
            .map_err(|_| KeyServiceError::Length(key.expose().len()))
    }

    /// Fetches the master secret and its salt, for the control plane with this attested identity.
    ///
    /// # Errors
    /// As for [`Self::data_key`].
    pub async fn master_secret(&self, recipient: String) -> Result<(SecretBytes, Vec<u8>), KeyServiceError> {
        let request = GetMasterSecretRequest { recipient };
        let ask = || async {
            let request = self.authenticated(request.clone()).await?;
            Ok(ApiClient::new(self.channel.clone()).get_master_secret(request).await?)
        };
        let response = ask.retry(DELAYS).when(is_out_of_reach).await?;
        let GetMasterSecretResponse { key, salt } = response.into_inner();
        Ok((SecretBytes::from_vec(key), salt))
    }

    async fn authenticated<T>(&self, message: T) -> Result<Request<T>, KeyServiceError> {
        let token = tokio::fs::read_to_string(&self.token)
            .await
            .map_err(|source| KeyServiceError::Token {
                path: self.token.clone(),
                source,
            })?;
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| KeyServiceError::MalformedToken(self.token.clone()))?;
        // Keeps it out of HPACK's tables and of every Debug output.
        bearer.set_sensitive(true);
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }
}

fn is_out_of_reach(error: &KeyServiceError) -> bool {
    matches!(error, KeyServiceError::Refused(status) if status.code() == Code::Unavailable)
}

async fn connect(
    config: Arc<ClientConfig>,
    uri: Uri,
) -> std::io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(Service::Key.name()).expect("a fixed DNS name is valid");
    Ok(TokioIo::new(TlsConnector::from(config).connect(name, stream).await?))
}
