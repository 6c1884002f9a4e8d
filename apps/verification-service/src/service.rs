use std::sync::Arc;

use attestation::{Attester, BindingParts, Nonce};
use error_report::Chain;
use grpc_api::verify::api_server::Api;
use grpc_api::verify::{GetAttestationRequest, GetAttestationResponse};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use tracing::error;

/// A device makes one quote at a time. In a longer queue, callers would wait longer than they are willing to.
const QUEUE: usize = 8;

/// Evidence on demand, for a bounded number of callers at once.
#[derive(Clone)]
pub(crate) struct Quoting {
    attester: Arc<dyn Attester>,
    queue: Arc<Semaphore>,
    made: Counter,
}

/// Evidence could not be produced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuoteError {
    #[error("the nonce has {0} bytes, expected 32 random bytes")]
    Nonce(usize),
    #[error("too many callers are waiting for evidence")]
    Busy,
    #[error("the device produced no evidence")]
    Device,
}

impl Quoting {
    pub(crate) fn new(attester: Arc<dyn Attester>, metrics: &mut Registry) -> Self {
        let made = Counter::default();
        metrics.register("verification_service_evidence", "Evidence given out", made.clone());
        Self {
            attester,
            queue: Arc::new(Semaphore::new(QUEUE)),
            made,
        }
    }

    /// Encoded Evidence over the caller's nonce.
    pub(crate) async fn evidence(&self, nonce: &[u8]) -> Result<Vec<u8>, QuoteError> {
        let nonce: [u8; 32] = nonce.try_into().map_err(|_| QuoteError::Nonce(nonce.len()))?;
        let place = self.queue.clone().try_acquire_owned().map_err(|_| QuoteError::Busy)?;
        let parts = BindingParts::Nonce(Nonce::new(nonce));
        let attester = self.attester.clone();
        let quote = tokio::task::spawn_blocking(move || {
            let evidence = attester.attest(&parts);
            drop(place);
            evidence
        });
        match quote.await {
            Ok(Ok(evidence)) => {
                self.made.inc();
                Ok(evidence.encode())
            }
            Ok(Err(failure)) => {
                error!(error = %Chain(&failure), "cannot produce evidence");
                Err(QuoteError::Device)
            }
            Err(_) => Err(QuoteError::Device),
        }
    }
}

#[tonic::async_trait]
impl Api for Quoting {
    async fn get_attestation(
        &self,
        request: Request<GetAttestationRequest>,
    ) -> Result<Response<GetAttestationResponse>, Status> {
        let GetAttestationRequest { nonce } = request.into_inner();
        let attestation = self.evidence(&nonce).await.map_err(|error| match error {
            QuoteError::Nonce(_) => Status::invalid_argument(format!("nonce: {error}")),
            QuoteError::Busy => Status::resource_exhausted(error.to_string()),
            QuoteError::Device => Status::unavailable(error.to_string()),
        })?;
        Ok(Response::new(GetAttestationResponse { attestation }))
    }
}
