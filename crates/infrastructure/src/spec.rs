use std::collections::BTreeSet;
use std::path::PathBuf;

use cluster_types::{NodeName, NodeRole, OperatorPublicKey};
use serde::{Deserialize, Serialize};

use crate::MirrorSource;

/// The machines that should exist.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// The cluster's name.
    pub name: String,
    /// The folder with the node image.
    pub image: PathBuf,
    /// SHA-256 of the init secret in hex: how a node recognises who created it.
    pub init_secret_hash: String,
    /// Whom the nodes obey. None until there is a master secret, before which no machine is made.
    pub operator: Option<OperatorPublicKey>,
    /// Where nodes fetch Kubernetes from, as this machine sees it.
    pub mirror: MirrorSource,
    /// The nodes, control planes first.
    pub nodes: Vec<NodeSpec>,
    /// The nodes that are part of the cluster. Their state disks are kept; any other node is replaced once it has stopped.
    pub members: BTreeSet<NodeName>,
}

/// One machine that should exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeSpec {
    /// Its name in Kubernetes.
    pub name: NodeName,
    /// What it is meant to do.
    pub role: NodeRole,
    /// The node group of the configuration it belongs to.
    pub group: String,
    /// Number of virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u32,
    /// Size of the state disk in GB (10^9 bytes).
    #[serde(rename = "stateDiskSizeGB")]
    pub state_disk_gb: u32,
}
