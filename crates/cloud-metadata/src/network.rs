use std::net::Ipv4Addr;

use cluster_types::{Cidr, NodeInterface};
use serde::{Deserialize, Serialize};

use crate::{ParseMetadataError, PrivateAddress};

/// What resolv.conf(5) takes.
const MAX_NAME_SERVERS: usize = 3;

/// How nodes reach each other and a resolver, as the platform says. A lie makes a node that nobody reaches, and nothing worse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawNetwork", into = "RawNetwork")]
pub struct NodeNetwork {
    cidr: Cidr,
    interface: NodeInterface,
    name_servers: Vec<Ipv4Addr>,
}

/// An address outside of the network that the platform says the nodes have.
#[derive(Debug, thiserror::Error)]
#[error("{address} is not the address of a machine in {cidr}, the network of the nodes")]
pub struct OutsideNodeNetwork {
    address: Ipv4Addr,
    cidr: Cidr,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawNetwork {
    cidr: String,
    interface: String,
    name_servers: Vec<Ipv4Addr>,
}

impl NodeNetwork {
    /// The network of the nodes.
    #[must_use]
    pub const fn cidr(&self) -> Cidr {
        self.cidr
    }

    /// The network card that leads there.
    #[must_use]
    pub const fn interface(&self) -> NodeInterface {
        self.interface
    }

    /// Resolvers for names outside the cluster; at least one.
    #[must_use]
    pub fn name_servers(&self) -> &[Ipv4Addr] {
        &self.name_servers
    }

    /// Checks that a node's address is in this network.
    ///
    /// # Errors
    /// When no machine in it can have the address.
    pub fn check(&self, address: PrivateAddress) -> Result<(), OutsideNodeNetwork> {
        let (address, cidr) = (address.ip(), self.cidr);
        if cidr.has_host(address) {
            Ok(())
        } else {
            Err(OutsideNodeNetwork { address, cidr })
        }
    }
}

impl TryFrom<RawNetwork> for NodeNetwork {
    type Error = ParseMetadataError;

    fn try_from(raw: RawNetwork) -> Result<Self, Self::Error> {
        let count = raw.name_servers.len();
        if !(1..=MAX_NAME_SERVERS).contains(&count) {
            return Err(ParseMetadataError::NameServers(count));
        }
        if let Some(bad) = raw.name_servers.iter().find(|address| !may_be_name_server(**address)) {
            return Err(ParseMetadataError::NameServer(*bad));
        }
        Ok(Self {
            cidr: Cidr::for_nodes(&raw.cidr).map_err(ParseMetadataError::Cidr)?,
            interface: raw.interface.parse().map_err(ParseMetadataError::Interface)?,
            name_servers: raw.name_servers,
        })
    }
}

/// Some other machine's address: neither this node's loopback, nor many machines', nor one inside the cluster, which would ask itself.
fn may_be_name_server(address: Ipv4Addr) -> bool {
    let of_kubernetes = [Cidr::PODS, Cidr::SERVICES].iter().any(|cidr| cidr.contains(address));
    let one_machine = !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast();
    one_machine && !address.is_loopback() && !of_kubernetes
}

impl From<NodeNetwork> for RawNetwork {
    fn from(network: NodeNetwork) -> Self {
        Self {
            cidr: network.cidr.to_string(),
            interface: network.interface.to_string(),
            name_servers: network.name_servers,
        }
    }
}

pub(crate) fn parse_network(json: &[u8]) -> Result<NodeNetwork, ParseMetadataError> {
    crate::instance::from_json::<RawNetwork>(json)?.try_into()
}

#[cfg(test)]
mod tests {
    use error_report::Chain;

    use super::*;

    const GOOD: &str = r#"{"cidr":"10.42.0.0/16","interface":"private0","nameServers":["10.0.2.3"]}"#;

    #[test]
    fn a_network_is_read_and_written_alike() {
        let network = parse_network(GOOD.as_bytes()).unwrap();
        assert_eq!(network.interface(), NodeInterface::Private);
        assert_eq!(network.cidr().prefix_len(), 16);
        assert_eq!(network.name_servers(), [Ipv4Addr::new(10, 0, 2, 3)]);
        assert_eq!(serde_json::to_string(&network).unwrap(), GOOD);
        assert_eq!(serde_json::from_str::<NodeNetwork>(GOOD).unwrap(), network);
    }

    #[test]
    fn a_lie_in_each_key_is_named() {
        for (from, to, reason) in [
            (
                "10.42.0.0/16",
                "0.0.0.0/0",
                "cidr is unusable: 0.0.0.0/0 is not a private network",
            ),
            (
                "10.42.0.0/16",
                "10.0.0.0/8",
                "cidr is unusable: 10.0.0.0/8 overlaps 10.244.0.0/16",
            ),
            (
                "10.42.0.0/16",
                "10.96.0.0/16",
                "cidr is unusable: 10.96.0.0/16 overlaps 10.96.0.0/12",
            ),
            ("10.42.0.0/16", "x", "cidr is unusable"),
            ("private0", "lo", "interface is unusable: \"lo\""),
            ("private0", "private0 up", "interface is unusable"),
            ("\"10.0.2.3\"", "", "nameServers has 0 addresses, expected 1 to 3"),
            (
                "\"10.0.2.3\"",
                "\"10.0.2.3\",\"10.0.2.3\",\"10.0.2.3\",\"10.0.2.3\"",
                "nameServers has 4 addresses",
            ),
            ("10.0.2.3", "127.0.0.53", "127.0.0.53 cannot be a name server"),
            ("10.0.2.3", "10.96.0.10", "10.96.0.10 cannot be a name server"),
            ("10.0.2.3", "224.0.0.1", "224.0.0.1 cannot be a name server"),
            ("10.0.2.3", "0.0.0.0", "0.0.0.0 cannot be a name server"),
            ("10.0.2.3", "x", "nameServers[0] is not in the documented form"),
        ] {
            let error = parse_network(GOOD.replacen(from, to, 1).as_bytes()).expect_err(to);
            let error = Chain(&error).to_string();
            assert!(error.contains(reason), "{to}: {error}");
        }
    }

    #[test]
    fn only_addresses_of_the_network_belong_to_its_nodes() {
        let network = parse_network(GOOD.as_bytes()).unwrap();
        let check = |octets: [u8; 4]| network.check(Ipv4Addr::from(octets).try_into().unwrap());
        check([10, 42, 1, 100]).unwrap();
        for bad in [[10, 42, 0, 0], [10, 42, 255, 255], [10, 43, 1, 100], [192, 168, 0, 1]] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
