//! What the tests of this crate share.

use deployment::PodNetwork;

pub(crate) fn network() -> PodNetwork {
    PodNetwork {
        pod_cidr: "10.244.0.0/16".into(),
        node_interface: "^private0$".into(),
        api_server: "10.42.1.100:6443".parse().unwrap(),
    }
}
