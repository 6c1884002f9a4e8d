use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use attestation::{BindingParts, Purpose};
use error_report::Chain;
use grpc_api::attestation::api_server::Api;
use grpc_api::attestation::{
    AttestNonceRequest, AttestNonceResponse, AttestSessionRequest, AttestSessionResponse, DescribeRequest,
    DescribeResponse,
};
use tonic::{Request, Response, Status};
use tracing::{error, warn};

use crate::device::{Device, NoAnswer, Queue};
use crate::request::{InvalidRequest, parse_nonce, parse_session};

/// Refusals in between are not told.
const BETWEEN_REFUSALS: Duration = Duration::from_secs(10);

/// Who asks through a socket, and hence what for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clientele {
    JoinService,
    VerificationService,
}

/// The implementation of `constellation.attestation.v1.API` on one socket.
pub(crate) struct Attestation {
    queue: Queue,
    clientele: Clientele,
    refusal_told: Mutex<Option<Instant>>,
}

impl Clientele {
    const fn purposes(self) -> &'static [Purpose] {
        match self {
            Self::JoinService => &[Purpose::Join, Purpose::Rejoin],
            Self::VerificationService => &[Purpose::Verify],
        }
    }

    /// Nothing is released for Evidence over a nonce alone, but a join service does not need it.
    const fn attests_nonces(self) -> bool {
        match self {
            Self::JoinService => false,
            Self::VerificationService => true,
        }
    }
}

impl Attestation {
    pub(crate) fn new(device: &Device, clientele: Clientele) -> Self {
        Self {
            queue: Queue::for_device(device),
            clientele,
            refusal_told: Mutex::default(),
        }
    }

    async fn evidence(&self, parts: BindingParts) -> Result<Vec<u8>, Status> {
        Ok(self.queue.attest(parts).await.map_err(failed)?.encode())
    }

    /// Whoever has taken the service over may ask often, and each line is written to the console.
    fn refuse(&self, requested: &str) -> Status {
        let mut told = self.refusal_told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() > BETWEEN_REFUSALS) {
            warn!(clientele = ?self.clientele, requested, "no evidence for this purpose");
            *told = Some(Instant::now());
        }
        Status::permission_denied(format!("this socket is not for {requested}"))
    }
}

#[tonic::async_trait]
impl Api for Attestation {
    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let DescribeRequest {} = request.into_inner();
        let shown = self.queue.shown().await.map_err(failed)?;
        Ok(Response::new(DescribeResponse {
            variant: self.queue.variant().to_string(),
            operator: shown.operator.as_bytes().to_vec(),
            membership: shown.membership.as_bytes().to_vec(),
        }))
    }

    async fn attest_session(
        &self,
        request: Request<AttestSessionRequest>,
    ) -> Result<Response<AttestSessionResponse>, Status> {
        let parts = parse_session(request.into_inner()).map_err(invalid)?;
        if !self.clientele.purposes().contains(&parts.purpose) {
            return Err(self.refuse(parts.purpose.as_str()));
        }
        let evidence = self.evidence(BindingParts::Session(parts)).await?;
        Ok(Response::new(AttestSessionResponse { evidence }))
    }

    async fn attest_nonce(
        &self,
        request: Request<AttestNonceRequest>,
    ) -> Result<Response<AttestNonceResponse>, Status> {
        if !self.clientele.attests_nonces() {
            return Err(self.refuse("evidence over a nonce"));
        }
        let nonce = parse_nonce(request.into_inner()).map_err(invalid)?;
        let evidence = self.evidence(BindingParts::Nonce(nonce)).await?;
        Ok(Response::new(AttestNonceResponse { evidence }))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn invalid(request: InvalidRequest) -> Status {
    Status::invalid_argument(Chain(&request).to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn failed(failure: NoAnswer) -> Status {
    let reason = Chain(&failure).to_string();
    match failure {
        NoAnswer::Busy => Status::resource_exhausted(reason),
        NoAnswer::Attest(_) | NoAnswer::Device(_) | NoAnswer::CutOff => {
            error!(error = reason, "the device does not answer");
            Status::unavailable(reason)
        }
    }
}
