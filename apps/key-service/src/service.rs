use cluster_objects::{Caller, Cluster, ReviewTokenError};
use cluster_types::key_service::AUDIENCE;
use error_report::Chain;
use grpc_api::kms::api_server::Api;
use grpc_api::kms::{GetDataKeyRequest, GetDataKeyResponse, GetMasterSecretRequest, GetMasterSecretResponse};
use jiff::Timestamp;
use key_derivation::{Epoch, Label, MasterSecret};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tonic::{Request, Response, Status};
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::audit::{AuditLog, Decision, Record};
use crate::policy::Access;
use crate::request::{DataKey, InvalidRequest, Recipient, Wanted};

/// Longer tokens are refused unread. Real ones have about 1 KiB.
const MAX_TOKEN_LEN: usize = 16 * 1024;
/// The implementation of `constellation.kms.v1.API`.
pub(crate) struct KeyService {
    master_secret: MasterSecret,
    cluster: Cluster,
    audit: AuditLog,
    granted: Counter,
    denied: Counter,
}

impl KeyService {
    pub(crate) fn new(master_secret: MasterSecret, cluster: Cluster, audit: AuditLog, metrics: &mut Registry) -> Self {
        let (granted, denied) = (Counter::default(), Counter::default());
        metrics.register("key_service_granted", "Keys handed out", granted.clone());
        metrics.register("key_service_denied", "Requests refused", denied.clone());
        Self {
            master_secret,
            cluster,
            audit,
            granted,
            denied,
        }
    }

    /// Seed of the key by which callers recognise this service.
    pub(crate) fn identity_seed(&self) -> Zeroizing<[u8; 32]> {
        self.master_secret.kek().derive_array(Label::KeyServiceIdentity)
    }

    /// 1. Authenticate the caller by its token.
    /// 2. Parse the request: only an authenticated caller learns what is wrong with it.
    /// 3. Authorise the caller for this key.
    /// 4. Record the decision; without a record, no key leaves.
    async fn admit<M, W: Wanted>(
        &self,
        request: &Request<M>,
        parse: impl FnOnce(&M) -> Result<W, InvalidRequest>,
    ) -> Result<W, Status> {
        let caller = self.authenticate(request).await.inspect_err(|_| {
            self.denied.inc();
        })?;
        let wanted = parse(request.get_ref()).map_err(|invalid| {
            self.denied.inc();
            warn!(caller = caller.username, error = %invalid, "invalid request");
            Status::invalid_argument(invalid.to_string())
        })?;
        self.authorise(&caller, wanted.access(), wanted.recipient()).await?;
        Ok(wanted)
    }

    /// Decides, and returns when the decision has been recorded.
    async fn authorise(&self, caller: &Caller, access: Access, recipient: Option<&str>) -> Result<(), Status> {
        let decision = if access.is_allowed_to(&caller.username) {
            Decision::Granted
        } else {
            Decision::Denied
        };
        self.record(caller, access, recipient, decision).await?;
        match decision {
            Decision::Granted => {
                self.granted.inc();
                info!(caller = caller.username, key = %access, "key granted");
                Ok(())
            }
            Decision::Denied => {
                self.denied.inc();
                warn!(caller = caller.username, key = %access, "key denied");
                Err(Status::permission_denied("this caller may not have this key"))
            }
        }
    }

    async fn authenticate<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let token = bearer_token(request).ok_or_else(|| {
            warn!(error = "the request has no usable token", "caller not authenticated");
            Status::unauthenticated("a service-account token for audience key-service is required")
        })?;
        self.cluster
            .review_token(token, AUDIENCE)
            .await
            .map_err(|error| match error {
                ReviewTokenError::Api(_) => {
                    error!(error = %Chain(&error), "token review failed");
                    Status::unavailable("the token cannot be reviewed now")
                }
                ReviewTokenError::NotAuthentic(_) | ReviewTokenError::Audience(_) => {
                    warn!(error = %Chain(&error), "caller not authenticated");
                    Status::unauthenticated("the token is not accepted here")
                }
            })
    }

    async fn record(
        &self,
        caller: &Caller,
        access: Access,
        recipient: Option<&str>,
        decision: Decision,
    ) -> Result<(), Status> {
        let record = Record {
            time: Timestamp::now(),
            caller: caller.username.clone(),
            pod: caller.pod.clone(),
            key: access.to_string(),
            recipient: recipient.map(str::to_owned),
            decision,
        };
        self.audit.write(record).await.map_err(|error| {
            error!(%error, "cannot write the audit record");
            Status::unavailable("the request cannot be recorded, so no key is handed out")
        })
    }
}

fn bearer_token<T>(request: &Request<T>) -> Option<&str> {
    request
        .metadata()
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN_LEN)
}

#[tonic::async_trait]
impl Api for KeyService {
    async fn get_data_key(&self, request: Request<GetDataKeyRequest>) -> Result<Response<GetDataKeyResponse>, Status> {
        let DataKey { label, length } = self.admit(&request, DataKey::parse).await?;
        let key = self.master_secret.kek().derive(label, Epoch(0), length);
        let key = key.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(GetDataKeyResponse { data_key: key.to_vec() }))
    }

    async fn get_master_secret(
        &self,
        request: Request<GetMasterSecretRequest>,
    ) -> Result<Response<GetMasterSecretResponse>, Status> {
        self.admit(&request, Recipient::parse).await?;
        Ok(Response::new(GetMasterSecretResponse {
            key: self.master_secret.expose_key().to_vec(),
            salt: self.master_secret.salt().to_vec(),
        }))
    }
}
