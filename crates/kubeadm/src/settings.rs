use std::net::{Ipv4Addr, SocketAddrV4};

use cluster_types::{Cidr, HostPort, KubernetesVersion, NodeName, NodeRole};
use rustls::pki_types::CertificateDer;

use crate::{BootstrapToken, CertSan, ClusterName};

/// The settings that are the same for every node of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// The cluster's name, for people.
    pub name: ClusterName,
    /// The Kubernetes version to install.
    pub version: KubernetesVersion,
    /// Where nodes reach the API server.
    pub endpoint: SocketAddrV4,
    /// Further names and addresses in the API server's certificate.
    pub cert_sans: Vec<CertSan>,
    /// The network of pods.
    pub pods: Cidr,
    /// The network of Services.
    pub services: Cidr,
    /// How kube-proxy implements Services.
    pub proxy: ProxyMode,
}

/// How kube-proxy forwards connections to Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// Through nftables, for images with `nft`.
    Nftables,
    /// Through iptables, for images without `nft`.
    Iptables,
}

/// The settings of one node.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Its name in the cluster.
    pub name: NodeName,
    /// Its address on the private network, which every component uses and announces.
    pub address: Ipv4Addr,
    /// The platform's id of the node.
    pub provider_id: String,
}

/// What a node needs to join.
#[derive(Debug)]
pub struct JoinSettings {
    /// The role in which it joins.
    pub role: NodeRole,
    /// The API server's address.
    pub endpoint: HostPort,
    /// Proves to the cluster that this node may request a kubelet certificate.
    pub token: BootstrapToken,
    /// The cluster's CA: proves to this node that it is talking to its cluster.
    pub cluster_ca: CertificateDer<'static>,
}
