use std::net::{Ipv4Addr, SocketAddrV4};

use cluster_types::{Cidr, HostPort, KubernetesVersion, NodeName, NodeRole};

use crate::{BootstrapToken, CertSan, ClusterName};

/// What is the same for every node of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// For people.
    pub name: ClusterName,
    /// What is installed.
    pub version: KubernetesVersion,
    /// Where nodes reach the API server.
    pub endpoint: SocketAddrV4,
    /// Further names and addresses in the API server's certificate.
    pub cert_sans: Vec<CertSan>,
    /// Addresses of pods.
    pub pods: Cidr,
    /// Addresses of Services.
    pub services: Cidr,
    /// How Services are made.
    pub proxy: ProxyMode,
}

/// How kube-proxy forwards connections to Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// By nftables.
    Nftables,
    /// By iptables, for images without `nft`.
    Iptables,
}

/// What one node is.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Its name in the cluster.
    pub name: NodeName,
    /// Its address on the private segment: the one every component uses and announces.
    pub address: Ipv4Addr,
    /// How the platform calls it.
    pub provider_id: String,
}

/// What a node needs to join.
#[derive(Debug)]
pub struct JoinSettings {
    /// As what.
    pub role: NodeRole,
    /// Where the API server is.
    pub endpoint: HostPort,
    /// Proves to the cluster that this node may ask for a kubelet certificate.
    pub token: BootstrapToken,
    /// Proves to this node that it talks to its cluster: `sha256:` and the hash of the CA's public key.
    pub ca_cert_hash: String,
}
