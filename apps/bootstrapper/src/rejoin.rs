//! From a node whose state disk is closed to the member that it was before the reboot.

#[cfg(test)]
mod tests;

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use attestation::{DeviceError, Membership, Purpose};
use attested_tls::Endpoint;
use cluster_policy::{AdvancePolicyError, BelievedPolicy};
use cluster_types::{ClusterId, DiskUuid, NodeRole};
use error_report::Chain;
use grpc_api::join::{IssueRejoinTicketRequest, IssueRejoinTicketResponse};
use key_derivation::cluster_id;
use node_secrets::NodeSecrets;
use secret::{MeasurementSecret, StateDiskKey};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::disk::{ClosedDisk, OpenDiskError};
use crate::files::{LoadNodeStateError, Stage};
use crate::join::ticket::{InvalidTicket, believe, check_service, open_secrets};
use crate::join::{AskError, TicketSession, answered, endpoint_for_members, wait_for_ticket};
use crate::lock::{MeasureError, Owner, Taken};
use crate::node::{OperatorError, OwnImageError, ThisNode};

/// Every ticket leaves a record in the key service's audit log.
const WRONG_KEY_DELAY: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 * 60 });

/// What opens the state disk again, from a control plane of the cluster that this node's operator has signed a policy for.
struct RejoinTicket {
    policy: BelievedPolicy,
    state_disk_key: StateDiskKey,
    measurement_secret: MeasurementSecret,
}

/// The node cannot come back. What its disk holds stays there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RejoinError {
    #[error("cannot read which cluster this node belongs to")]
    Device(#[from] DeviceError),
    #[error("this machine has measured a membership already, but its state disk is closed: restart it")]
    AlreadyMember,
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(transparent)]
    OwnImage(#[from] OwnImageError),
    #[error("cannot use the state disk")]
    Disk(#[from] OpenDiskError),
    #[error(transparent)]
    State(#[from] LoadNodeStateError),
    #[error("the node was interrupted while joining a cluster: replace it")]
    Interrupted,
    #[error(
        "the ticket is for cluster {ticket}, but its secret and the salt on the state disk give {derived}: the disk is another cluster's"
    )]
    AnotherCluster { ticket: ClusterId, derived: ClusterId },
    #[error("the cluster's policy is refused")]
    Policy(#[from] AdvancePolicyError),
    #[error("the state disk is not a worker's, and no other node can come back yet")]
    NotAWorker,
    #[error(transparent)]
    Lock(#[from] Taken),
    #[error(transparent)]
    Measure(#[from] MeasureError),
}

/// Opens the state disk with the key that a join service brings, and measures which member this node is.
///
/// 1. The operator is measured. The membership is not: a join service gives no disk's key to a node that may have it already.
/// 2. A control plane of the operator's cluster issues a ticket, again and again until its key opens the disk.
/// 3. The membership is measured: a worker of that cluster. Nobody else comes back, and nothing on the disk says otherwise, because root on this
///    node may have written it.
/// 4. Only now is the file system mounted. It must be that of a worker of this cluster which has not seen a newer policy than the ticket's.
///
/// # Security
/// The disk is never formatted here, whatever anyone answers.
///
/// # Errors
/// When the node cannot become the member that it was. Until the disk is open, failures are retried and are not errors.
pub(crate) async fn rejoin(node: &ThisNode, disk: Arc<dyn ClosedDisk>) -> Result<(), RejoinError> {
    info!("asking the cluster for the key of the state disk");
    if !node.attester.membership()?.is_new() {
        return Err(RejoinError::AlreadyMember);
    }
    node.obey_operator().await?;
    let endpoint = endpoint_for_members(node)?;
    let ask = |address| ask(node, &endpoint, disk.uuid(), address);
    let ticket = loop {
        let ticket = wait_for_ticket(node, ask).await;
        match open(&disk, ticket).await {
            Ok(ticket) => break ticket,
            Err(error @ OpenDiskError::WrongKey) => {
                warn!(error = %Chain(&error), retry_in = ?WRONG_KEY_DELAY, "asking again");
            }
            Err(error) => return Err(error.into()),
        }
        sleep(WRONG_KEY_DELAY).await;
    };
    info!("the state disk is open");
    let membership = Membership::new(ticket.policy.cluster, NodeRole::Worker);
    node.lock.reserve(Owner::Rejoin)?.measure(membership).await?;
    mount(&disk).await?;
    must_be_that_member(node, &ticket)
}

async fn open(disk: &Arc<dyn ClosedDisk>, ticket: RejoinTicket) -> Result<RejoinTicket, OpenDiskError> {
    let disk = disk.clone();
    let open = move || disk.open(&ticket.state_disk_key).map(|()| ticket);
    spawn_blocking(open).await.expect("disk operations do not panic")
}

async fn mount(disk: &Arc<dyn ClosedDisk>) -> Result<(), OpenDiskError> {
    let disk = disk.clone();
    let mount = move || disk.mount();
    spawn_blocking(mount).await.expect("disk operations do not panic")
}

fn must_be_that_member(node: &ThisNode, ticket: &RejoinTicket) -> Result<(), RejoinError> {
    let state = node.files.load_state()?;
    if state.stage != Stage::Member {
        return Err(RejoinError::Interrupted);
    }
    if state.role != NodeRole::Worker {
        return Err(RejoinError::NotAWorker);
    }
    let derived = cluster_id(&ticket.measurement_secret, &state.measurement_salt);
    if derived != ticket.policy.cluster {
        let ticket = ticket.policy.cluster;
        return Err(RejoinError::AnotherCluster { ticket, derived });
    }
    Ok(node.files.policy_store().advance(&ticket.policy)?)
}

async fn ask(
    node: &ThisNode,
    endpoint: &Endpoint,
    disk: DiskUuid,
    address: SocketAddrV4,
) -> Result<RejoinTicket, AskError> {
    let session = TicketSession::open(node, endpoint, Purpose::Rejoin, address).await?;
    let request = IssueRejoinTicketRequest {
        disk_uuid: disk.to_string(),
    };
    let response = answered(session.client().issue_rejoin_ticket(request)).await?;
    let ticket = RejoinTicket::parse(response, &session, node, disk)?;
    info!(%address, cluster = %ticket.policy.cluster, service = %session.service.identity(), "ticket received");
    Ok(ticket)
}

impl RejoinTicket {
    /// Parses a ticket.
    ///
    /// 1. The operator whom this node obeys has signed the policy.
    /// 2. The join service is a control plane of the policy's cluster.
    /// 3. The secrets come from the key service that the policy names, are for this node, this session and this disk, and were released by
    ///    that policy.
    fn parse(
        message: IssueRejoinTicketResponse,
        session: &TicketSession,
        node: &ThisNode,
        expected: DiskUuid,
    ) -> Result<Self, InvalidTicket> {
        let IssueRejoinTicketResponse {
            sealed_secrets,
            cluster_policy,
        } = message;
        let policy = believe(&cluster_policy, &node.hints.operator)?;
        check_service(policy.cluster, &session.service.result().statements().membership)?;
        let NodeSecrets {
            disk,
            state_disk_key,
            measurement_secret,
            // It was compared.
            policy: _,
            // The node has stored it.
            cluster_ca: _,
            control_plane,
        } = open_secrets(&sealed_secrets, &session.own(), &policy)?;
        if disk != expected {
            return Err(InvalidTicket::AnotherDisk { actual: disk, expected });
        }
        if control_plane.is_some() {
            return Err(InvalidTicket::UnwantedMasterSecret);
        }
        Ok(Self {
            policy,
            state_disk_key,
            measurement_secret,
        })
    }
}
