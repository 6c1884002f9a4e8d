//! From a node whose state disk is closed to the member that it was before the reboot.

mod member_secrets;
mod recover_server;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use attestation::{DeviceError, Membership, Purpose};
use attested_tls::Endpoint;
use cluster_policy::{AdvancePolicyError, NotNewerError};
use cluster_types::{ClusterId, DiskUuid, NodeRole};
use error_report::Chain;
use grpc_api::join::{IssueRejoinTicketRequest, IssueRejoinTicketResponse};
use key_derivation::cluster_id;
use node_secrets::NodeSecrets;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::disk::{ClosedDisk, OpenDiskError};
use crate::files::{LoadNodeStateError, Stage};
use crate::join::ticket::{InvalidTicket, believe, check_service, open_secrets};
use crate::join::{AskError, TicketSession, answered, endpoint_for_members, wait_for_ticket};
use crate::lock::{MeasureError, Owner, Taken};
use crate::node::{LAST_BYTES, OperatorError, OwnImageError, ThisNode};
use member_secrets::{MemberSecrets, Source};
use recover_server::Recovery;

/// Every ticket leaves a record in the key service's audit log.
const WRONG_KEY_DELAY: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 * 60 });

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
        "the node came back to cluster {measured}, but the measurement secret and the salt on the state disk give {derived}: the disk is \
         another cluster's"
    )]
    AnotherCluster { measured: ClusterId, derived: ClusterId },
    #[error("the cluster's policy is refused")]
    Policy(#[from] AdvancePolicyError),
    #[error("the node came back as a {measured}, but its state disk is that of a {stored}")]
    AnotherRole { measured: NodeRole, stored: NodeRole },
    #[error(transparent)]
    Lock(#[from] Taken),
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error("the operator cannot reach this node any more")]
    Server(#[source] io::Error),
}

/// Opens the state disk with a key that a join service or the operator brings, and measures which member this node is.
///
/// 1. The operator is measured. The membership is not: nobody sends a disk's key to a node that may have it already.
/// 2. Two things go on side by side until a key opens the disk: control planes of the operator's cluster are asked for a ticket, and the
///    operator can bring the same.
/// 3. The membership is measured: of that cluster, in the role for which the key opened the disk. Nothing on the disk says otherwise, because
///    root on this node may have written it.
/// 4. Only now is the file system mounted. It must be that of such a member of this cluster. The newest policy that it has seen stays in
///    force; a control plane that brings an earlier one is refused.
///
/// # Security
/// The disk is never formatted here, whatever anyone answers.
///
/// # Errors
/// When the node cannot become the member that it was. Until the disk is open, failures are retried and are not errors.
pub(crate) async fn rejoin(
    node: &ThisNode,
    disk: Arc<dyn ClosedDisk>,
    listener: TcpListener,
) -> Result<(), RejoinError> {
    if !node.attester.membership()?.is_new() {
        return Err(RejoinError::AlreadyMember);
    }
    node.obey_operator().await?;
    info!("the state disk is closed: waiting for its key, from the cluster or from the operator");
    let (recoveries, received) = mpsc::channel(1);
    let served = recover_server::serve(node, disk.uuid(), listener, recoveries);
    tokio::select! {
        result = come_back(node, &disk, received) => result,
        ended = served => {
            let error = ended.err().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into());
            Err(RejoinError::Server(error))
        }
    }
}

async fn come_back(
    node: &ThisNode,
    disk: &Arc<dyn ClosedDisk>,
    mut recoveries: mpsc::Receiver<Recovery>,
) -> Result<(), RejoinError> {
    let endpoint = endpoint_for_members(node)?;
    let mut delay = Duration::ZERO;
    loop {
        tokio::select! {
            ticket = ticket_after(delay, node, &endpoint, disk.uuid()) => match become_member(node, disk, ticket).await {
                Err(RejoinError::Disk(error @ OpenDiskError::WrongKey)) => {
                    delay = WRONG_KEY_DELAY;
                    warn!(error = %Chain(&error), retry_in = ?delay, "asking again");
                }
                result => return result,
            },
            Some(Recovery { secrets, answer }) = recoveries.recv() => {
                let result = become_member(node, disk, secrets).await;
                // An operator who is gone finds out by asking again.
                let _ = answer.send(result.as_ref().copied().map_err(|error| Chain(error).to_string()));
                match result {
                    Err(RejoinError::Disk(OpenDiskError::WrongKey)) => warn!("the operator's key does not open the state disk"),
                    result => {
                        sleep(LAST_BYTES).await;
                        return result;
                    }
                }
            }
        }
    }
}

async fn ticket_after(delay: Duration, node: &ThisNode, endpoint: &Endpoint, disk: DiskUuid) -> MemberSecrets {
    sleep(delay).await;
    wait_for_ticket(node, |address| ask(node, endpoint, disk, address)).await
}

async fn become_member(node: &ThisNode, disk: &Arc<dyn ClosedDisk>, secrets: MemberSecrets) -> Result<(), RejoinError> {
    let secrets = open(disk, secrets).await?;
    info!("the state disk is open");
    let membership = Membership::new(secrets.policy.cluster, secrets.role);
    node.lock.reserve(Owner::Rejoin)?.measure(membership).await?;
    mount(disk).await?;
    must_be_that_member(node, &secrets)
}

async fn open(disk: &Arc<dyn ClosedDisk>, secrets: MemberSecrets) -> Result<MemberSecrets, OpenDiskError> {
    let disk = disk.clone();
    let open = move || disk.open(&secrets.state_disk_key).map(|()| secrets);
    spawn_blocking(open).await.expect("disk operations do not panic")
}

async fn mount(disk: &Arc<dyn ClosedDisk>) -> Result<(), OpenDiskError> {
    let disk = disk.clone();
    let mount = move || disk.mount();
    spawn_blocking(mount).await.expect("disk operations do not panic")
}

fn must_be_that_member(node: &ThisNode, secrets: &MemberSecrets) -> Result<(), RejoinError> {
    let state = node.files.load_state()?;
    if state.stage != Stage::Member {
        return Err(RejoinError::Interrupted);
    }
    if state.role != secrets.role {
        let (measured, stored) = (secrets.role, state.role);
        return Err(RejoinError::AnotherRole { measured, stored });
    }
    let derived = cluster_id(&secrets.measurement_secret, &state.measurement_salt);
    let measured = secrets.policy.cluster;
    if derived != measured {
        return Err(RejoinError::AnotherCluster { measured, derived });
    }
    match (node.files.policy_store().advance(&secrets.policy), secrets.source) {
        (Err(AdvancePolicyError::NotNewer(older @ NotNewerError::Older { .. })), Source::Operator) => {
            warn!(error = %older, "the newer policy stays in force");
            Ok(())
        }
        (result, _) => Ok(result?),
    }
}

async fn ask(
    node: &ThisNode,
    endpoint: &Endpoint,
    disk: DiskUuid,
    address: SocketAddrV4,
) -> Result<MemberSecrets, AskError> {
    let session = TicketSession::open(node, endpoint, Purpose::Rejoin, address).await?;
    let request = IssueRejoinTicketRequest {
        disk_uuid: disk.to_string(),
        is_control_plane: node.hints.this_node.role == NodeRole::ControlPlane,
    };
    let response = answered(session.client().issue_rejoin_ticket(request)).await?;
    let ticket = MemberSecrets::of_ticket(response, &session, node, disk)?;
    info!(%address, cluster = %ticket.policy.cluster, service = %session.service.identity(), "ticket received");
    Ok(ticket)
}

impl MemberSecrets {
    /// Parses a ticket.
    ///
    /// 1. The operator whom this node obeys has signed the policy.
    /// 2. The join service is a control plane of the policy's cluster.
    /// 3. The secrets come from the key service that the policy names, are for this node, this session and this disk, and were released by
    ///    that policy.
    fn of_ticket(
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
            // The platform's word, which the key confirms: it is for a disk of a node in this role.
            role: node.hints.this_node.role,
            policy,
            state_disk_key,
            measurement_secret,
            source: Source::Cluster,
        })
    }
}
