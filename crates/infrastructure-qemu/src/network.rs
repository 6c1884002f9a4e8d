//! The networks of a local cluster's VMs, and what of them nodes are told (docs/interfaces.md).
//!
//! Each VM has two cards: one in a user network of its own, which QEMU makes up and in which this machine is a gateway with a
//! resolver, and one in the private network of the cluster's VMs.

use std::net::Ipv4Addr;

use cluster_types::{NodeInterface, NodeRole};

use crate::folder::ClusterRecord;

/// This machine's loopback in the user network (QEMU manual, "Using the user mode network stack").
pub(crate) const HOST_FROM_GUEST: &str = "10.0.2.2";
/// The resolver in the user network.
pub(crate) const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The private network.
pub(crate) const NODE_CIDR: &str = "10.42.0.0/16";
/// The card in it.
pub(crate) const NODE_INTERFACE: NodeInterface = NodeInterface::Private;
/// The multicast group that carries the private network; only its port differs between clusters.
pub(crate) const MULTICAST_GROUP: Ipv4Addr = Ipv4Addr::new(230, 0, 0, 77);

/// The first free address for a node of this role: control planes `10.42.1.100` and on, workers `10.42.2.100` and on.
pub(crate) fn free_address(role: NodeRole, record: &ClusterRecord) -> Ipv4Addr {
    let third = match role {
        NodeRole::ControlPlane => 1,
        NodeRole::Worker => 2,
    };
    let is_free = |address: &Ipv4Addr| record.nodes.values().all(|node| node.address != *address);
    (100..=u8::MAX)
        .map(|last| Ipv4Addr::new(10, 42, third, last))
        .find(is_free)
        .expect("a configuration has at most 100 nodes of one role")
}
