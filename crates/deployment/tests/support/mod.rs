//! What the tests of this crate share.

use cluster_types::{Cidr, NodeInterface};
use deployment::PodNetwork;

pub(crate) fn network() -> PodNetwork {
    PodNetwork {
        pods: Cidr::PODS,
        node_interface: NodeInterface::Private,
    }
}
