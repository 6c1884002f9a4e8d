//! From a new node to a member of an existing cluster.

mod endpoints;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod ticket;

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use attestation::{ExpectedMembership, Membership, Purpose, ReportBinding};
use attested_tls::{AttestedNode, Endpoint, HandshakeError, Limits, PeerPolicy, channel};
use cloud_metadata::{Instance, MetadataError};
use cluster_types::NodeRole;
use error_report::Chain;
use grpc_api::join::IssueJoinTicketRequest;
use grpc_api::join::api_client::ApiClient;
use kubeadm::JoinError;
use node_secrets::{SealingKey, SharedFile};
use polling::poll_endlessly;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::disk::{StateDiskError, rekey};
use crate::files::NodeState;
use crate::lock::{Locked, MeasureError, Owner, Reservation};
use crate::node::{FIRST_DELAY, LONGEST_DELAY, OwnImageError, PrepareError, ThisNode};
use crate::repeated::Repeated;
use endpoints::join_services;
use ticket::{InvalidTicket, OwnSession, Ticket};

/// For one ticket request. The service calls other services and the API server meanwhile.
const TICKET_LIMIT: Duration = Duration::from_secs(60);
/// A join service that does not answer the handshake must not delay the others for long.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);
/// For workers only: a control plane that failed half-way may already be a member of etcd, and joining again would add another.
const WORKER_ATTEMPTS: u32 = 3;
const ATTEMPT_DELAY: Duration = Duration::from_secs(5);

/// How joining ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// The node is a member.
    Member,
    /// The init server holds the node lock.
    InitTookOver,
}

/// The node has become unusable. It must power off, and another attempt needs a blank disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BecomeMemberError {
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error(transparent)]
    Disk(#[from] StateDiskError),
    #[error("cannot write the node's files")]
    Files(#[from] io::Error),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Kubeadm(#[from] JoinError),
    #[error(transparent)]
    OwnImage(#[from] OwnImageError),
}

/// There is no ticket yet. Another attempt may get one.
#[derive(Debug, thiserror::Error)]
enum NoTicketError {
    #[error("metadata does not say where the control planes are")]
    Metadata(#[from] MetadataError),
    #[error("metadata names no control plane other than this node")]
    NoControlPlane,
    #[error("no join service issued a ticket")]
    NobodyIssued,
}

/// Why one join service issued no ticket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the join service did not attest")]
    NotAttested,
    #[error("the join service did not require this node to attest")]
    NotAskedToAttest,
    #[error("the join service refused: {}", .0.message())]
    Refused(tonic::Status),
    #[error("the join service did not answer within {TICKET_LIMIT:?}")]
    TimedOut,
    #[error("invalid ticket")]
    Ticket(#[from] InvalidTicket),
}

/// Joins the cluster that metadata leads to and whose join service attests.
///
/// 1. A join service that runs an accepted image and belongs to a cluster issues a ticket. Meanwhile a worker fetches what
///    it will probably need.
/// 2. The node lock is taken, unless the init server has it.
/// 3. The node becomes a member.
///
/// # Errors
/// When the node cannot be used any more. Until the lock is taken, failures are retried and are not errors.
///
/// # Cancel safety
/// Until the lock is taken, dropping the future leaves at most a ticket that expires.
pub(crate) async fn join(node: &ThisNode) -> Result<Joined, BecomeMemberError> {
    let endpoint = endpoint_for_members(node)?;
    let ask = |address| ask(node, &endpoint, address);
    let ticket = tokio::select! {
        ticket = wait_for_ticket(node, ask) => ticket,
        never = fetch_in_advance(node) => never,
    };
    let Ok(reservation) = node.lock.reserve(Owner::Join) else {
        return Ok(Joined::InitTookOver);
    };
    become_member(node, reservation, ticket).await?;
    Ok(Joined::Member)
}

/// Opens sessions only with nodes that run this node's own image and belong to some cluster.
pub(crate) fn endpoint_for_members(node: &ThisNode) -> Result<Endpoint, OwnImageError> {
    let accepted = node.own_image(ExpectedMembership::Any)?;
    let limits = Limits {
        handshake: HANDSHAKE_LIMIT,
        ..Limits::default()
    };
    Ok(node.endpoint(PeerPolicy::Attested(Arc::new(accepted)), limits))
}

/// For workers only: a control plane may be about to become the first one.
async fn fetch_in_advance<T>(node: &ThisNode) -> T {
    if node.hints.this_node.role == NodeRole::Worker
        && let Err(error) = node.prefetch().await
    {
        info!(error = %Chain(&error), "cannot fetch components in advance");
    }
    std::future::pending().await
}

/// Asks every join service, again and again, until one issues a ticket.
pub(crate) async fn wait_for_ticket<T, F>(node: &ThisNode, ask: impl Fn(SocketAddrV4) -> F) -> T
where
    F: Future<Output = Result<T, AskError>>,
{
    let repeated = Repeated::default();
    let log = |error: &NoTicketError| {
        let failure = Chain(error).to_string();
        if repeated.is_news("round", &failure) {
            info!(error = %failure, "no ticket yet");
        }
    };
    let attempt = || ask_everyone(node, &ask, &repeated);
    poll_endlessly(FIRST_DELAY, LONGEST_DELAY, attempt, log).await
}

async fn ask_everyone<T, F>(
    node: &ThisNode,
    ask: &impl Fn(SocketAddrV4) -> F,
    repeated: &Repeated,
) -> Result<T, NoTicketError>
where
    F: Future<Output = Result<T, AskError>>,
{
    let peers = node.metadata.peers().await?;
    let services = join_services(&node.hints, &peers);
    if services.is_empty() {
        return Err(NoTicketError::NoControlPlane);
    }
    for address in services {
        match ask(address).await {
            Ok(ticket) => return Ok(ticket),
            Err(error) => {
                let failure = Chain(&error).to_string();
                if repeated.is_news(&address.to_string(), &failure) {
                    warn!(%address, error = %failure, "join service issued no ticket");
                }
            }
        }
    }
    Err(NoTicketError::NobodyIssued)
}

/// A session with a join service in which both sides have attested.
pub(crate) struct TicketSession {
    client: ApiClient<Channel>,
    pub(crate) service: AttestedNode,
    sealing_key: SealingKey,
    binding: ReportBinding,
}

impl TicketSession {
    pub(crate) async fn open(
        node: &ThisNode,
        endpoint: &Endpoint,
        purpose: Purpose,
        address: SocketAddrV4,
    ) -> Result<Self, AskError> {
        let reachable = (node.reach)(address).to_string();
        let sealing_key = SealingKey::generate();
        let endpoint = endpoint.clone().with_sealing_key(sealing_key.public());
        let session = channel(&endpoint, purpose, &reachable).await?;
        Ok(Self {
            service: session.node.ok_or(AskError::NotAttested)?,
            binding: session.own_binding.ok_or(AskError::NotAskedToAttest)?,
            client: ApiClient::new(session.channel),
            sealing_key,
        })
    }

    pub(crate) fn client(&self) -> ApiClient<Channel> {
        self.client.clone()
    }

    pub(crate) fn own(&self) -> OwnSession<'_> {
        OwnSession {
            sealing_key: &self.sealing_key,
            binding: &self.binding,
        }
    }
}

/// One answer, within its time.
pub(crate) async fn answered<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, AskError> {
    let answer = timeout(TICKET_LIMIT, call).await.map_err(|_| AskError::TimedOut)?;
    Ok(answer.map_err(AskError::Refused)?.into_inner())
}

async fn ask(node: &ThisNode, endpoint: &Endpoint, address: SocketAddrV4) -> Result<Ticket, AskError> {
    let session = TicketSession::open(node, endpoint, Purpose::Join, address).await?;
    let this_node = &node.hints.this_node;
    let request = IssueJoinTicketRequest {
        node_name: this_node.name.to_string(),
        node_address: this_node.address.ip().to_string(),
        is_control_plane: this_node.role == NodeRole::ControlPlane,
        role_grant: role_grant(this_node),
    };
    let response = answered(session.client().issue_join_ticket(request)).await?;
    let ticket = Ticket::parse(
        response,
        &session.own(),
        &session.service.result().statements().membership,
        &node.hints.operator,
        this_node.role,
    )?;
    info!(%address, cluster = %ticket.cluster, service = %session.service.identity(), "ticket received");
    Ok(ticket)
}

/// Only control planes send a grant. The platform may offer one to a worker, but a join service refuses it there.
fn role_grant(this_node: &Instance) -> Vec<u8> {
    match this_node.role {
        NodeRole::ControlPlane => this_node.role_grant.clone().unwrap_or_default(),
        NodeRole::Worker => Vec::new(),
    }
}

/// 1. Cluster id and role are measured: from here on this node has this role in this cluster or is part of none.
/// 2. The state disk gets its key.
/// 3. The node's state, the cluster policy and, on a control plane, the cluster's keys are written to it.
/// 4. Kubernetes is installed, and images are imported.
/// 5. kubeadm joins the node.
/// 6. The node's state says that it is a member.
///
/// # Cancel safety
/// Dropping the future leaves a node that cannot be used; it must power off.
async fn become_member(node: &ThisNode, reservation: Reservation, mut ticket: Ticket) -> Result<(), BecomeMemberError> {
    let step = |name| info!(step = name, "joining");
    step("measuring cluster id and role");
    let locked = reservation
        .measure(Membership::new(ticket.cluster, ticket.settings.role))
        .await?;
    step("re-keying the state disk");
    rekey(&locked, &node.disk, ticket.disk, ticket.take_state_disk_key()).await?;
    step("writing the node's state");
    // The disk may be full of files that a mirror claimed the node needs.
    node.keep_only(&ticket.components)?;
    let state = write_state(node, &locked, &ticket)?;
    step("installing Kubernetes");
    node.prepare(ticket.settings.role, &ticket.components, ticket.mirror.as_ref())
        .await?;
    step("joining the cluster");
    join_cluster(node, &ticket).await?;
    node.files.write_state(&locked, &state.as_member())?;
    Ok(())
}

fn write_state(node: &ThisNode, locked: &Locked, ticket: &Ticket) -> io::Result<NodeState> {
    let address = node.hints.this_node.address.ip();
    let network = node.hints.network.clone();
    let state = NodeState::new(ticket.settings.role, ticket.measurement_salt, address, network)
        .fetching_from(ticket.mirror.as_ref());
    node.files.write_state(locked, &state)?;
    node.files.write_components(locked, &ticket.components)?;
    node.files.write_policy(locked, &ticket.policy)?;
    if let Some(control_plane) = &ticket.control_plane {
        node.files
            .write_for_services(locked, &control_plane.master_secret, &ticket.policy)?;
        node.files.write_shared_files(locked, &control_plane.files)?;
        for SharedFile { name, content } in &control_plane.files {
            node.files.write_pki(locked, name, content)?;
        }
    }
    Ok(state)
}

async fn join_cluster(node: &ThisNode, ticket: &Ticket) -> Result<(), JoinError> {
    let attempts = match ticket.settings.role {
        NodeRole::Worker => WORKER_ATTEMPTS,
        NodeRole::ControlPlane => 1,
    };
    let mut attempt = 1;
    loop {
        match node.kubeadm().join(&ticket.settings, &node.settings()).await {
            Err(error) if attempt < attempts => {
                warn!(error = %Chain(&error), attempt, attempts, "kubeadm join failed, trying again");
            }
            result => return result,
        }
        attempt += 1;
        sleep(ATTEMPT_DELAY).await;
    }
}
