//! `constellation.recover.v1.API`: the operator opens this node's state disk, because no control plane is there that could.
//!
//! # Security
//! The caller does not attest; it signs what this node's Evidence of the session is bound to. So the operator is at the other end of that very
//! session, and nobody can pass on what they sent elsewhere. Whoever is not the operator learns which disk this is, as the host knows anyway.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use attestation::{Purpose, ReportBinding};
use attested_tls::{Limits, Peer, PeerPolicy, incoming, peer};
use cluster_policy::RefusePolicyError;
use cluster_types::{DiskUuid, NodeRole, OperatorPublicKey};
use error_report::Chain;
use grpc_api::recover::api_server::{Api, ApiServer};
use grpc_api::recover::{DescribeRequest, DescribeResponse, RecoverRequest, RecoverResponse};
use operator_key::{InvalidSignature, SignatureDomain};
use secret::{MeasurementSecret, StateDiskKey};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::member_secrets::{MemberSecrets, Source};
use crate::join::ticket::believe;
use crate::node::ThisNode;

/// A policy, which has at most 256 KiB, and two keys.
const MAX_MESSAGE_LEN: usize = 512 << 10;
/// Of one session. An operator makes one call after the other.
const STREAMS: u32 = 2;
const KEEPALIVE: Duration = Duration::from_secs(15);

/// What the operator brought, and where to say what became of it: why the node cannot be that member, if it cannot.
pub(super) struct Recovery {
    pub(super) secrets: MemberSecrets,
    pub(super) answer: oneshot::Sender<Result<(), String>>,
}

struct RecoverServer {
    operator: OperatorPublicKey,
    disk: DiskUuid,
    recoveries: mpsc::Sender<Recovery>,
}

#[derive(Debug, thiserror::Error)]
enum InvalidRecovery {
    #[error("the session has no evidence of this node")]
    NotAskedToAttest,
    #[error("operator_signature")]
    Signature(#[from] InvalidSignature),
    #[error("cluster_policy")]
    Policy(#[from] RefusePolicyError),
    #[error("{0} has the wrong length")]
    Length(&'static str),
}

/// Offers the API until the future is dropped.
///
/// # Errors
/// When it cannot be offered any more.
pub(super) async fn serve(
    node: &ThisNode,
    disk: DiskUuid,
    listener: TcpListener,
    recoveries: mpsc::Sender<Recovery>,
) -> io::Result<()> {
    let peer = PeerPolicy::Unattested {
        reason: "the operator signs for the session",
    };
    let endpoint = Arc::new(node.endpoint(peer, Limits::default()));
    let server = RecoverServer {
        operator: node.hints.operator,
        disk,
        recoveries,
    };
    let sessions = incoming(listener, endpoint, &[Purpose::Recover]);
    let api = ApiServer::new(server).max_decoding_message_size(MAX_MESSAGE_LEN);
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS)
        .add_service(api);
    served.serve_with_incoming(sessions).await.map_err(io::Error::other)
}

#[tonic::async_trait]
impl Api for RecoverServer {
    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let DescribeRequest {} = request.into_inner();
        Ok(Response::new(DescribeResponse {
            disk_uuid: self.disk.to_string(),
        }))
    }

    /// 1. The operator whom this node obeys has signed for this session.
    /// 2. What was sent is parsed.
    /// 3. The task that opens the disk gets it, and says whether the node is the member that it was.
    ///
    /// # Cancel safety
    /// A lost connection does not stop the recovery.
    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<RecoverResponse>, Status> {
        let Peer {
            address, own_binding, ..
        } = peer(&request, Purpose::Recover)?.clone();
        let secrets = MemberSecrets::of_operator(request.into_inner(), own_binding.as_ref(), &self.operator);
        let secrets = secrets.map_err(|error| {
            let reason = Chain(&error).to_string();
            warn!(%address, error = %reason, "recovery refused");
            match error {
                InvalidRecovery::NotAskedToAttest | InvalidRecovery::Signature(_) => Status::permission_denied(reason),
                InvalidRecovery::Policy(_) | InvalidRecovery::Length(_) => Status::invalid_argument(reason),
            }
        })?;
        let (cluster, role) = (secrets.policy.cluster, secrets.role);
        let (answer, answered) = oneshot::channel();
        let sent = self.recoveries.try_send(Recovery { secrets, answer });
        sent.map_err(|_| Status::unavailable("another recovery is going on"))?;
        info!(%address, %cluster, %role, "recovery accepted");
        match answered.await {
            Ok(Ok(())) => Ok(Response::new(RecoverResponse {})),
            Ok(Err(reason)) => Err(Status::failed_precondition(reason)),
            Err(_) => Err(Status::unavailable("the state disk was opened meanwhile")),
        }
    }
}

impl MemberSecrets {
    fn of_operator(
        message: RecoverRequest,
        binding: Option<&ReportBinding>,
        operator: &OperatorPublicKey,
    ) -> Result<Self, InvalidRecovery> {
        let RecoverRequest {
            operator_signature,
            state_disk_key,
            measurement_secret,
            cluster_policy,
            is_control_plane,
        } = message;
        // Wiped wherever parsing ends.
        let (state_disk_key, measurement_secret) = (Zeroizing::new(state_disk_key), Zeroizing::new(measurement_secret));
        let binding = binding.ok_or(InvalidRecovery::NotAskedToAttest)?;
        SignatureDomain::Recovery.verify(operator, binding.as_bytes(), &operator_signature)?;
        Ok(Self {
            role: NodeRole::requested(is_control_plane),
            policy: believe(&cluster_policy, operator)?,
            state_disk_key: StateDiskKey::from_slice(&state_disk_key)
                .ok_or(InvalidRecovery::Length("state_disk_key"))?,
            measurement_secret: MeasurementSecret::from_slice(&measurement_secret)
                .ok_or(InvalidRecovery::Length("measurement_secret"))?,
            source: Source::Operator,
        })
    }
}
