//! What the tests of this crate share.

use cluster_types::{Cidr, NodeInterface};
use deployment::PodNetwork;

pub(crate) fn network() -> PodNetwork {
    PodNetwork {
        pods: Cidr::PODS,
        node_interface: NodeInterface::Private,
        api_server: "10.42.1.100:6443".parse().unwrap(),
    }
}
