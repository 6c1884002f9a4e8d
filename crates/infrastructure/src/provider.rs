use std::fmt;
use std::net::Ipv4Addr;

use cluster_types::{NodeName, NodeRole};
use serde::{Deserialize, Serialize};

use crate::{ClusterSpec, ProviderError};

/// Makes and ends the machines of one cluster. Every operation can be repeated after a crash at any point of it.
pub trait Provider: Send + Sync {
    /// What [`create`](Self::create) would change. Changes nothing.
    ///
    /// # Errors
    /// When what exists cannot be read.
    fn plan(&self, spec: &ClusterSpec) -> Result<Plan, ProviderError>;

    /// Makes the machines be as wanted and running; those that are already stay untouched.
    ///
    /// # Errors
    /// When a machine cannot be made. What was made stays, for another try or for [`destroy`](Self::destroy).
    fn create(&self, spec: &ClusterSpec, progress: &dyn Fn(&str)) -> Result<Infrastructure, ProviderError>;

    /// Lets those of these machines go on that were made and have stopped or are paused, with their disks. Nothing else is changed, whatever the
    /// specification wants.
    ///
    /// # Errors
    /// When a machine cannot be started.
    fn start(
        &self,
        spec: &ClusterSpec,
        nodes: &[NodeName],
        progress: &dyn Fn(&str),
    ) -> Result<Infrastructure, ProviderError>;

    /// Ends one machine and removes what belongs to it. It is not an error if there is none.
    ///
    /// # Errors
    /// When something cannot be ended or removed.
    fn remove(&self, node: &NodeName) -> Result<(), ProviderError>;

    /// Ends every machine and removes what belongs to it, finished or not. It is not an error if there is nothing.
    ///
    /// # Errors
    /// When something cannot be ended or removed.
    fn destroy(&self) -> Result<(), ProviderError>;

    /// What became of the machines.
    ///
    /// # Errors
    /// When what exists cannot be read.
    fn machines(&self) -> Result<Vec<Machine>, ProviderError>;

    /// The last lines a machine wrote to its console; none if nothing is known of it.
    fn console(&self, node: &NodeName) -> Vec<String>;

    /// What an operator does about a machine that stopped: where more is to be read, and how it is started again.
    fn advice_on_stopped(&self) -> &'static str;
}

/// What would change, in the order in which it would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Nothing, if all is as wanted.
    pub changes: Vec<Change>,
}

/// One thing that would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A machine is made and started.
    Create(NodeName),
    /// A machine that has stopped is removed with its disk, and created again.
    Replace(NodeName),
    /// A machine that stopped is started with the disk it had.
    Restart(NodeName),
    /// A machine that is paused goes on.
    Resume(NodeName),
    /// A machine is ended and its disk removed.
    Remove(NodeName),
    /// Something else that machines need, in the provider's words.
    Other(&'static str),
}

/// What a provider made, as the state file holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Infrastructure {
    /// A random id that distinguishes clusters of the same name.
    pub uid: String,
    /// Where an administrator reaches the cluster.
    pub cluster_endpoint: String,
    /// Where nodes reach the API server.
    pub in_cluster_endpoint: String,
    /// Names and addresses that the API server's certificate must hold.
    #[serde(rename = "apiServerCertSANs")]
    pub api_server_cert_sans: Vec<String>,
    /// The network of the nodes.
    pub ip_cidr_node: String,
    /// Where nodes find the mirror of the specification.
    pub component_mirror: String,
    /// All machines of the cluster, made or not.
    pub nodes: Vec<Machine>,
}

/// A machine of the cluster, as the provider knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Machine {
    /// Its name in Kubernetes.
    pub name: NodeName,
    /// What it is meant to do.
    pub role: NodeRole,
    /// Its address among the other nodes.
    pub address: Ipv4Addr,
    /// Where an administrator reaches it.
    pub host: String,
    /// The ports there.
    pub ports: NodePorts,
    /// Names this start of the machine: after another start it is different. Not part of any file.
    #[serde(skip)]
    pub start: String,
    /// Whether it runs; not part of any file.
    #[serde(skip)]
    pub status: MachineStatus,
}

/// Ports at which an administrator reaches what a node offers; on the node itself they have fixed numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodePorts {
    /// 9000: the bootstrapper.
    pub bootstrapper: u16,
    /// 6443: the Kubernetes API.
    pub kubernetes: u16,
    /// 30080: the verification service, HTTP.
    pub verify_http: u16,
    /// 30081: the verification service, gRPC.
    pub verify: u16,
    /// 30090: the join service.
    pub join: u16,
}

/// Whether a machine runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MachineStatus {
    /// It was not checked.
    #[default]
    Unknown,
    /// It was not started yet.
    NotMade,
    /// The machine runs; what its system does is not known here.
    Running,
    /// It was started and does nothing, and goes on with what it did once the reason is gone and it is created again.
    Paused {
        /// Why, and what to do, as one line for the operator.
        reason: String,
    },
    /// The machine is not running.
    Stopped {
        /// Why, as one line for the operator.
        reason: String,
        /// The end of its console.
        console: Vec<String>,
    },
}

impl MachineStatus {
    /// In one word, for the operator.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotMade => "absent",
            Self::Running => "running",
            Self::Paused { .. } => "paused",
            Self::Stopped { .. } => "stopped",
        }
    }
}

impl Plan {
    /// Whether everything is as wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(node) => write!(f, "create {node}"),
            Self::Replace(node) => write!(f, "replace {node}, which stopped, and its state disk"),
            Self::Restart(node) => write!(f, "restart {node}, which stopped"),
            Self::Resume(node) => write!(f, "resume {node}, which is paused"),
            Self::Remove(node) => write!(f, "remove {node} and its state disk"),
            Self::Other(what) => f.write_str(what),
        }
    }
}
