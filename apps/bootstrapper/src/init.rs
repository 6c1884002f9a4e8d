//! From a new node to the first of a cluster.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::SystemTime;

use attestation::Membership;
use cluster_objects::JoinConfig;
use cluster_types::NodeRole;
use deployment::PodNetwork;
use key_derivation::DiskOwner;
use kubeadm::{ClusterSettings, InitError, Kubeconfig};
use polling::PollError;

use crate::deploy::{DeployError, Deployment, Start};
use crate::disk::{StateDiskError, disk_uuid, rekey};
use crate::events::{Event, InitEvents};
use crate::files::{ClusterNetwork, NodeState};
use crate::lock::{Locked, MeasureError, Reservation};
use crate::node::{PrepareError, ThisNode};
use crate::request::InitRequest;

/// An initialisation whose caller presented the init secret and that holds the node lock.
pub(crate) struct InitJob {
    pub(crate) reservation: Reservation,
    pub(crate) request: InitRequest,
    pub(crate) events: Arc<InitEvents>,
}

/// The node could not become the first of a cluster. It needs a restart and a blank disk before it can be used again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitialiseError {
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error(transparent)]
    Disk(#[from] StateDiskError),
    #[error("cannot write the node's files")]
    Files(#[from] io::Error),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Kubeadm(#[from] InitError),
    #[error("cannot apply the services")]
    Deploy(#[from] PollError<DeployError>),
}

/// Makes this node the first of a cluster and reports to the callers.
///
/// 1. Cluster id and role are measured: from here on this node is a control plane of this cluster or part of none.
/// 2. The state disk gets the key that only this cluster derives.
/// 3. The node's state, the cluster policy and the master secret are written to it.
/// 4. Kubernetes is installed, and images are imported.
/// 5. kubeadm creates the cluster.
/// 6. What control planes share is copied for the key service.
/// 7. What the image runs in the cluster is applied, so that other nodes can join.
/// 8. The node's state says that it is a member.
///
/// # Cancel safety
/// Dropping the future leaves a node that cannot be used; it must power off.
pub(crate) async fn initialise(node: &ThisNode, job: InitJob) -> Result<(), InitialiseError> {
    let InitJob {
        reservation,
        request,
        events,
    } = job;
    let result = run(node, reservation, request, &events).await;
    match result {
        Ok(kubeconfig) => {
            events.add(Event::Success(Arc::new(kubeconfig)));
            Ok(())
        }
        Err(error) => {
            events.add(Event::Failure(error_report::Chain(&error).to_string()));
            Err(error)
        }
    }
}

async fn run(
    node: &ThisNode,
    reservation: Reservation,
    request: InitRequest,
    events: &InitEvents,
) -> Result<Kubeconfig, InitialiseError> {
    let step = |name| {
        tracing::info!(step = name, "initialising");
        events.add(Event::Step(name));
    };
    step("measuring cluster id and role");
    let locked = reservation
        .measure(Membership::new(request.cluster, NodeRole::ControlPlane))
        .await?;
    step("re-keying the state disk");
    rekey_disk(node, &locked, &request).await?;
    step("writing the node's state");
    let state = write_state(node, &locked, &request)?;
    step("installing Kubernetes");
    node.prepare(NodeRole::ControlPlane, &request.components, request.mirror.as_ref())
        .await?;
    step("creating the cluster");
    let kubeconfig = make_cluster(node, &request).await?;
    let shared = node.files.read_shared_files()?;
    node.files.write_shared_files(&locked, &shared)?;
    step("applying the services");
    let deployment = deployment(node, request);
    node.deployer.deploy(&kubeconfig, &deployment).await?;
    node.files.write_state(&locked, &state.as_member())?;
    Ok(kubeconfig)
}

async fn rekey_disk(node: &ThisNode, locked: &Locked, request: &InitRequest) -> Result<(), InitialiseError> {
    let disk = disk_uuid(&node.disk).await?;
    let owner = DiskOwner {
        cluster: request.cluster,
        machine: *node.attester.identity().as_bytes(),
        role: NodeRole::ControlPlane,
    };
    let key = request.master_secret.kek().state_disk_key(disk, &owner);
    rekey(locked, &node.disk, disk, key).await?;
    Ok(())
}

fn write_state(node: &ThisNode, locked: &Locked, request: &InitRequest) -> io::Result<NodeState> {
    let address = node.hints.this_node.address.ip();
    let network = node.hints.network.clone();
    let cluster = ClusterNetwork {
        node: node.hints.this_node.name.clone(),
        api_server: api_server(node),
        pods: request.pods,
    };
    let state = NodeState::new(NodeRole::ControlPlane, request.measurement_salt, address, network)
        .fetching_from(request.mirror.as_ref())
        .deploying(cluster);
    node.files.write_state(locked, &state)?;
    node.files.write_components(locked, &request.components)?;
    node.files.write_policy(locked, &request.policy)?;
    node.files
        .write_for_services(locked, &request.master_secret, &request.policy)?;
    Ok(state)
}

async fn make_cluster(node: &ThisNode, request: &InitRequest) -> Result<Kubeconfig, InitError> {
    let cluster = ClusterSettings {
        name: request.name.clone(),
        version: request.components.kubernetes_version().clone(),
        endpoint: api_server(node),
        cert_sans: request.cert_sans.clone(),
        pods: request.pods,
        services: request.services,
        proxy: node.proxy_mode(),
    };
    // Only a certificate's validity depends on the clock; a wrong clock makes the certificate useless, not dangerous.
    node.kubeadm().init(&cluster, &node.settings(), SystemTime::now()).await
}

fn deployment(node: &ThisNode, request: InitRequest) -> Deployment {
    let join = JoinConfig {
        policy: request.policy.into_signed(),
        measurement_salt: request.measurement_salt,
        api_server_endpoint: api_server(node).into(),
        components: request.components.config_map_name(),
        component_mirror: request.mirror.map(|mirror| mirror.to_string()).unwrap_or_default(),
    };
    let start = Start {
        components: request.components,
        join,
    };
    Deployment {
        node: node.hints.this_node.name.clone(),
        identity: node.attester.identity(),
        network: PodNetwork {
            pods: request.pods,
            node_interface: node.hints.network.interface(),
            api_server: api_server(node),
        },
        start: Some(start),
    }
}

/// Where nodes reach it.
fn api_server(node: &ThisNode) -> SocketAddrV4 {
    let endpoint = node.hints.api_endpoint;
    SocketAddrV4::new(endpoint.host.ip(), endpoint.port)
}
