//! Passes the node's connections for the API server on to a control plane that answers, so that any of them may be gone.
//!
//! kubelets of workers, kube-proxy and the pod network know the API server by this program's address alone.
//!
//! # Security
//! The platform says which control planes there are, and may lie: what passes through is TLS between a client and a server that authenticate
//! each other. This program has no keys.

use std::convert::Infallible;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use cloud_metadata::{BASE_ADDRESS_FILE, CloudMetadata, Instance, MetadataError, NodeNetwork, QemuMetadata};
use cluster_types::{API_SERVER_PORT, LOCAL_API_SERVER, NodeRole};
use error_report::Chain;
use failover_proxy::{Upstreams, follow_readiness, serve};
use tokio::time::sleep;
use tracing::{info, warn};

/// Control planes come and go rarely, and one that is gone is found out without metadata.
const INTERVAL: Duration = Duration::from_secs(15);
/// The network may not be up yet.
const FIRST_INTERVAL: Duration = Duration::from_secs(2);

/// Passes connections for the API server on to a control plane that answers.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address on which the node's programs reach the API server.
    #[arg(long, default_value_t = LOCAL_API_SERVER.into())]
    address: SocketAddr,
    /// File with the base address of the platform's metadata.
    #[arg(long, default_value = BASE_ADDRESS_FILE)]
    metadata: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    service_runtime::start_logging();
    service_runtime::forbid_core_dumps()?;
    let metadata = QemuMetadata::find(&arguments.metadata)?;
    let listener = service_runtime::listen("--address", arguments.address).await?;
    let upstreams = Arc::new(Upstreams::default());
    tokio::select! {
        never = follow(&metadata, &upstreams) => match never {},
        never = follow_readiness(&upstreams) => match never {},
        never = serve(listener, &upstreams) => match never {},
    }
}

/// Keeps to what the platform says. While it says nothing, what it said last stays.
async fn follow(metadata: &dyn CloudMetadata, upstreams: &Upstreams) -> Infallible {
    let (mut known, mut is_usable) = (Vec::new(), true);
    loop {
        match control_planes(metadata).await {
            Ok(addresses) => {
                is_usable = true;
                if addresses != known {
                    info!(?addresses, "control planes");
                    upstreams.set(&addresses);
                    known = addresses;
                }
            }
            Err(error) => {
                if is_usable {
                    warn!(error = %Chain(&error), "metadata is unusable, asking again");
                }
                is_usable = false;
            }
        }
        sleep(if known.is_empty() { FIRST_INTERVAL } else { INTERVAL }).await;
    }
}

async fn control_planes(metadata: &dyn CloudMetadata) -> Result<Vec<SocketAddr>, MetadataError> {
    let (this_node, network) = (metadata.this_node().await?, metadata.network().await?);
    let peers = metadata.peers().await?;
    Ok(in_order(&this_node, &network, &peers))
}

/// Another node begins with another control plane. This node's own API server comes last: while the node becomes a control plane, its API
/// server answers before its etcd can. A peer outside the nodes' network is left out.
fn in_order(this_node: &Instance, network: &NodeNetwork, peers: &[Instance]) -> Vec<SocketAddr> {
    let control_planes = peers.iter().filter(|peer| peer.role == NodeRole::ControlPlane);
    let addresses = control_planes.map(|peer| peer.address);
    let mut addresses: Vec<_> = addresses.filter(|&address| network.check(address).is_ok()).collect();
    if !addresses.is_empty() {
        let number = this_node.address.ip().to_bits() as usize;
        let first = number % addresses.len();
        addresses.rotate_left(first);
    }
    addresses.sort_by_key(|&address| address == this_node.address);
    let upstream = |address: cloud_metadata::PrivateAddress| SocketAddrV4::new(address.ip(), API_SERVER_PORT).into();
    addresses.into_iter().map(upstream).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn instance(role: NodeRole, address: [u8; 4]) -> Instance {
        Instance {
            name: "node".parse().unwrap(),
            provider_id: "qemu:///node".into(),
            role,
            address: Ipv4Addr::from(address).try_into().unwrap(),
        }
    }

    #[test]
    fn connections_go_to_control_planes_and_last_to_this_one() {
        let network = r#"{"cidr":"10.42.0.0/16","interface":"private0","nameServers":["10.0.2.3"]}"#;
        let network = serde_json::from_str(network).unwrap();
        let peers = [
            instance(NodeRole::ControlPlane, [10, 42, 1, 100]),
            instance(NodeRole::Worker, [10, 42, 2, 100]),
            instance(NodeRole::ControlPlane, [192, 168, 1, 1]),
            instance(NodeRole::ControlPlane, [10, 42, 1, 101]),
        ];
        let order = |own: &Instance| {
            let addresses = in_order(own, &network, &peers);
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let [first, second] = ["10.42.1.100:6443", "10.42.1.101:6443"];
        assert_eq!(order(&peers[0]), [second, first]);
        assert_eq!(order(&peers[3]), [first, second]);
        assert_eq!(order(&peers[1]), [first, second]);
        assert_eq!(order(&instance(NodeRole::Worker, [10, 42, 2, 101])), [second, first]);
        assert!(in_order(&peers[1], &network, &peers[1..2]).is_empty());
    }
}
