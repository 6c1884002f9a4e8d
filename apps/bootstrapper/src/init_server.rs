//! `constellation.init.v1.API/Init`: the CLI makes this node the first of a cluster.
//!
//! # Security
//! The caller does not attest; it presents the init secret. Until then it learns nothing: neither the node's state, nor
//! what is wrong with its request, nor anything from the journal.

use std::sync::{Arc, Mutex, PoisonError};

use attestation::Purpose;
use attested_tls::peer;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use cloud_metadata::InitSecretHash;
use cluster_types::ClusterId;
use digest::Digest;
use error_report::Chain;
use grpc_api::init::api_server::Api;
use grpc_api::init::init_response::Kind;
use grpc_api::init::{
    InitFailureResponse, InitRequest as InitMessage, InitResponse, InitSuccessResponse, LogResponseType,
    ProgressResponse,
};
use operator_key::OperatorKey;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::events::{Event, InitEvents};
use crate::init::InitJob;
use crate::journal::read_journal;
use crate::lock::Owner;
use crate::node::ThisNode;
use crate::request::InitRequest;

/// How many messages may wait for the caller to take them.
const BACKLOG: usize = 8;

pub(crate) struct InitServer {
    node: Arc<ThisNode>,
    jobs: mpsc::Sender<InitJob>,
    current: Mutex<Option<Current>>,
}

/// The one initialisation of this boot.
#[derive(Clone)]
struct Current {
    cluster: ClusterId,
    events: Arc<InitEvents>,
}

impl InitServer {
    /// Hands the job to the task that runs it; there is at most one job.
    pub(crate) fn new(node: Arc<ThisNode>) -> (Self, mpsc::Receiver<InitJob>) {
        let (jobs, receiver) = mpsc::channel(1);
        let server = Self {
            node,
            jobs,
            current: Mutex::new(None),
        };
        (server, receiver)
    }

    /// Starts an initialisation, or finds the one that the same request started before its connection was lost.
    fn start_or_attach(&self, request: InitRequest) -> Result<Current, Status> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(started) if started.cluster == request.cluster => return Ok(started.clone()),
            Some(_) => return Err(Status::failed_precondition("the node is the first of another cluster")),
            None => {}
        }
        let reservation = self
            .node
            .lock
            .reserve(Owner::Init)
            .map_err(|_| Status::failed_precondition("the node is joining a cluster"))?;
        let started = Current {
            cluster: request.cluster,
            events: Arc::new(InitEvents::new()),
        };
        let job = InitJob {
            reservation,
            request,
            events: started.events.clone(),
        };
        self.jobs
            .try_send(job)
            .map_err(|_| Status::unavailable("the node is powering off"))?;
        *current = Some(started.clone());
        Ok(started)
    }
}

#[tonic::async_trait]
impl Api for InitServer {
    type InitStream = ReceiverStream<Result<InitResponse, Status>>;

    /// 1. The session is for `init`.
    /// 2. The caller presents the init secret.
    /// 3. The request is parsed.
    /// 4. The master secret must be that of the operator whom this node obeys.
    /// 5. An initialisation is started, or the running one is found.
    /// 6. Its events are sent from the first one on, followed by the journal after a failure.
    ///
    /// # Cancel safety
    /// A lost connection does not stop the initialisation.
    async fn init(&self, request: Request<InitMessage>) -> Result<Response<Self::InitStream>, Status> {
        let address = peer(&request, Purpose::Init)?.address;
        let message = request.into_inner();
        if !is_init_secret(&self.node.hints.init_secret_hash, &message.init_secret) {
            warn!(%address, "init refused: wrong init secret");
            return Err(Status::permission_denied("init refused"));
        }
        let request = InitRequest::parse(message).map_err(|invalid| Status::invalid_argument(invalid.to_string()))?;
        if OperatorKey::of(&request.master_secret).public() != self.node.hints.operator {
            warn!(%address, "init refused: the master secret is another operator's");
            let refusal = "kms_uri: this master secret belongs to another operator than the one this node obeys";
            return Err(Status::failed_precondition(refusal));
        }
        let current = self.start_or_attach(request)?;
        info!(%address, cluster = %current.cluster, "init accepted");

        let (sender, receiver) = mpsc::channel(BACKLOG);
        let node = self.node.clone();
        // Ends when the initialisation does, or when the caller is gone.
        tokio::spawn(async move { tell(&node, &current, &sender).await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Compares digests in constant time, so that the time reveals neither length nor content of the secret.
fn is_init_secret(expected: &InitSecretHash, secret: &[u8]) -> bool {
    verify_slices_are_equal(Digest::of(secret).as_bytes(), expected.as_bytes()).is_ok()
}

type Sender = mpsc::Sender<Result<InitResponse, Status>>;

async fn tell(node: &ThisNode, current: &Current, sender: &Sender) {
    let mut number = 0;
    while let Some(event) = current.events.event(number).await {
        number += 1;
        let failed = matches!(event, Event::Failure(_));
        if send(sender, message(event, current.cluster)).await.is_err() {
            return;
        }
        if failed {
            send_journal(node, sender).await;
        }
    }
    // Everything was taken, or the caller is gone.
    let _ = sender.reserve_many(BACKLOG).await;
    if !sender.is_closed() {
        current.events.mark_delivered();
    }
}

fn message(event: Event, cluster: ClusterId) -> Kind {
    match event {
        Event::Step(step) => Kind::Progress(ProgressResponse { step: step.to_owned() }),
        Event::Success(kubeconfig) => Kind::InitSuccess(InitSuccessResponse {
            kubeconfig: kubeconfig.expose().to_vec(),
            cluster_id: cluster.as_bytes().to_vec(),
        }),
        Event::Failure(error) => Kind::InitFailure(InitFailureResponse { error }),
    }
}

async fn send_journal(node: &ThisNode, sender: &Sender) {
    match read_journal(&*node.programs).await {
        Ok(chunks) => {
            for log in chunks {
                if send(sender, Kind::Log(LogResponseType { log })).await.is_err() {
                    return;
                }
            }
        }
        Err(error) => warn!(error = %Chain(&error), "cannot read the journal"),
    }
}

/// The caller is gone.
struct Gone;

async fn send(sender: &Sender, kind: Kind) -> Result<(), Gone> {
    sender
        .send(Ok(InitResponse { kind: Some(kind) }))
        .await
        .map_err(|_| Gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_init_secret_is_the_init_secret() {
        let hash = InitSecretHash::new(*Digest::of(b"secret").as_bytes());
        assert!(is_init_secret(&hash, b"secret"));
        for other in [&b""[..], b"secre", b"secret\n", b"Secret", hash.as_bytes()] {
            assert!(!is_init_secret(&hash, other));
        }
    }
}
