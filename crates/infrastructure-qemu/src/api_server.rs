//! One port of loopback that leads to the API server of any control plane that answers.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cluster_types::NodeRole;
use failover_proxy::Upstreams;
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::folder::{ClusterRecord, RunFolder};

/// Machines may be added, or get other ports, while this runs.
const INTERVAL: Duration = Duration::from_secs(2);

/// Serves until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, folder: &RunFolder) -> Infallible {
    let upstreams = Arc::new(Upstreams::default());
    tokio::select! {
        never = failover_proxy::serve(listener, &upstreams) => never,
        never = failover_proxy::follow_readiness(&upstreams) => never,
        never = follow(folder, &upstreams) => never,
    }
}

/// A record that cannot be read is being written, or is for the CLI to report.
async fn follow(folder: &RunFolder, upstreams: &Upstreams) -> Infallible {
    loop {
        if let Ok(Some(record)) = folder.record() {
            upstreams.set(&control_planes(&record));
        }
        sleep(INTERVAL).await;
    }
}

fn control_planes(record: &ClusterRecord) -> Vec<SocketAddr> {
    let nodes = record.nodes.values();
    let control_planes = nodes.filter(|node| node.spec.role == NodeRole::ControlPlane);
    let port = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    control_planes.map(|node| port(node.ports.kubernetes)).collect()
}
