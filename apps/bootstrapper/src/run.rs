//! The life of a bootstrapper, from power-on to a running kubelet.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use attestation::{DeviceError, MeasuringAttester, Purpose};
use attested_tls::{Limits, PeerPolicy, incoming};
use error_report::Chain;
use grpc_api::init::api_server::ApiServer;
use service_runtime::Memory;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tonic::transport::Server;
use tracing::{info, warn};

use crate::deploy::keep_deployed;
use crate::events::InitEvents;
use crate::init::{InitialiseError, initialise};
use crate::init_server::InitServer;
use crate::join::{BecomeMemberError, Joined, join};
use crate::network::{NetworkError, set_up_network};
use crate::node::{LAST_BYTES, OperatorError, ThisNode};

/// How long a caller that lost its connection can still fetch the result of a finished initialisation.
const RESULT_KEPT: Duration = Duration::from_secs(60 * 60);
/// How long a failed initialisation waits for its caller before the node powers off.
const FAILURE_KEPT: Duration = Duration::from_secs(2 * 60);

/// The node cannot become part of a cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("cannot read which cluster this node belongs to")]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error("cannot set up the node's network")]
    Network(#[from] NetworkError),
    #[error("the init server ended")]
    Server(#[from] tonic::transport::Error),
    #[error("the init server ended without an error")]
    ServerEnded,
    #[error("cannot make this node the first of a cluster")]
    Init(#[from] InitialiseError),
    #[error("cannot make this node a member of a cluster")]
    Join(#[from] BecomeMemberError),
    #[error("cannot open the init server's port")]
    Listen(#[from] io::Error),
}

/// The state in which a boot begins.
pub(crate) enum Boot {
    /// Nothing was measured: no cluster yet.
    New,
    /// The bootstrapper opened the disk before systemd started, and measured the membership.
    Member,
}

pub(crate) fn boot(attester: &dyn MeasuringAttester) -> Result<Boot, DeviceError> {
    Ok(if attester.membership()?.is_new() {
        Boot::New
    } else {
        Boot::Member
    })
}

/// Makes a new node part of a cluster, through the CLI or a join service, whichever comes first.
///
/// # Errors
/// When the node cannot be used any more and must power off.
pub(crate) async fn bootstrap(node: Arc<ThisNode>, listener: TcpListener) -> Result<(), NodeError> {
    node.obey_operator().await?;
    let address = node.hints.this_node.address.ip();
    set_up_network(&node.files, &*node.programs, address, &node.hints.network).await?;
    let (server, mut jobs) = InitServer::new(node.clone());
    let peer = PeerPolicy::Unattested {
        reason: "the CLI does not run on a node; it presents the init secret",
    };
    let endpoint = Arc::new(node.endpoint(peer, Limits::default()));
    let sessions = incoming(listener, endpoint, &[Purpose::Init]);
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(15)))
        .add_service(ApiServer::new(server))
        .serve_with_incoming(sessions);
    tokio::pin!(server);
    report("node waits to become part of a cluster");

    let become_part = async {
        tokio::select! {
            // The init server took the lock, so the join client cannot have it.
            Some(job) = jobs.recv() => {
                let events = job.events.clone();
                let result = initialise(&node, job).await;
                if result.is_ok() {
                    report("node is the first of a cluster");
                }
                keep_available(&events, result.is_ok()).await;
                result.map_err(NodeError::from)
            }
            joined = join_unless_initialised(&node) => joined,
        }
    };
    let import = async {
        // It is tried again when the images are needed, and fails there if it still fails.
        if let Err(error) = node.import_own_images().await {
            warn!(error = %Chain(&error), "cannot import the services' images yet");
        }
        std::future::pending().await
    };
    tokio::select! {
        result = become_part => result,
        served = &mut server => Err(served.map_or_else(NodeError::from, |()| NodeError::ServerEnded)),
        never = import => never,
        never = keep_deployed(&node.files, node.attester.identity(), &*node.deployer) => match never {},
    }
}

/// Callers that lost their connection come back for the result. A kubeconfig that was sent may not have arrived; a failed
/// node stays only to tell one caller why.
async fn keep_available(events: &InitEvents, succeeded: bool) {
    if succeeded {
        sleep(RESULT_KEPT).await;
    } else if timeout(FAILURE_KEPT, events.delivered()).await.is_ok() {
        sleep(LAST_BYTES).await;
    }
}

async fn join_unless_initialised(node: &ThisNode) -> Result<(), NodeError> {
    match join(node).await? {
        Joined::Member => {
            report("node is a member");
            Ok(())
        }
        // The other branch goes on.
        Joined::InitTookOver => std::future::pending().await,
    }
}

/// Logs the node's state and this program's memory use. Nothing else could measure it, because it runs before everything else.
fn report(state: &str) {
    let memory = Memory::of_this_process().ok();
    let (resident, peak) = (memory.map(|memory| memory.resident), memory.map(|memory| memory.peak));
    info!(state, resident_kib = resident, peak_kib = peak, "state reached");
}
