use std::net::SocketAddrV4;

use cloud_metadata::Instance;
use cluster_types::{NodeRole, ServicePort};

use crate::node::Hints;

/// Where join services may be: first the API server's address, then every control plane except this node. A peer outside the
/// nodes' network is left out.
pub(super) fn join_services(hints: &Hints, peers: &[Instance]) -> Vec<SocketAddrV4> {
    let control_planes = peers
        .iter()
        .filter(|peer| peer.role == NodeRole::ControlPlane)
        .map(|peer| peer.address);
    let mut addresses = Vec::new();
    for address in std::iter::once(hints.api_endpoint.host).chain(control_planes) {
        let is_node = hints.network.check(address).is_ok() && address != hints.this_node.address;
        if is_node && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
        .into_iter()
        .map(|address| SocketAddrV4::new(address.ip(), ServicePort::JOIN_ON_NODE))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use cloud_metadata::{ApiEndpoint, InitSecretHash, NodeNetwork};
    use cluster_types::OperatorPublicKey;

    use super::*;

    fn instance(role: NodeRole, host: u8) -> Instance {
        Instance {
            name: format!("node-{host}").parse().unwrap(),
            provider_id: "qemu:///x".into(),
            role,
            address: Ipv4Addr::new(10, 42, 1, host).try_into().unwrap(),
            role_grant: None,
        }
    }

    fn network() -> NodeNetwork {
        let network = r#"{"cidr":"10.42.0.0/16","interface":"private0","nameServers":["10.0.2.3"]}"#;
        serde_json::from_str(network).unwrap()
    }

    fn check(own: u8, endpoint: u8) -> Vec<String> {
        let hints = Hints {
            this_node: instance(NodeRole::ControlPlane, own),
            network: network(),
            api_endpoint: ApiEndpoint {
                host: Ipv4Addr::new(10, 42, 1, endpoint).try_into().unwrap(),
                port: 6443,
            },
            init_secret_hash: InitSecretHash::new([0; 32]),
            operator: OperatorPublicKey::new([0; 32]),
        };
        let peers = [
            instance(NodeRole::ControlPlane, 100),
            instance(NodeRole::Worker, 150),
            instance(NodeRole::ControlPlane, 101),
            Instance {
                address: Ipv4Addr::new(192, 168, 1, 1).try_into().unwrap(),
                ..instance(NodeRole::ControlPlane, 103)
            },
        ];
        join_services(&hints, &peers).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn control_planes_are_asked_once_each_and_never_this_node() {
        assert_eq!(check(102, 100), ["10.42.1.100:30090", "10.42.1.101:30090"]);
        assert_eq!(check(102, 101), ["10.42.1.101:30090", "10.42.1.100:30090"]);
        assert_eq!(check(100, 100), ["10.42.1.101:30090"]);
        assert_eq!(
            check(102, 7),
            ["10.42.1.7:30090", "10.42.1.100:30090", "10.42.1.101:30090"]
        );
    }
}
