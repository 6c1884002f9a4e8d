use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a node does in the cluster.
///
/// A role that a node or the cloud states is only a request. A control plane needs a role grant signed by the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeRole {
    /// Runs the API server, etcd and the services that hold keys.
    ControlPlane,
    /// Runs workloads, and nothing of what a control plane runs.
    Worker,
}

/// A text that is not a role.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a node role: use control-plane or worker")]
pub struct ParseNodeRoleError(String);

impl NodeRole {
    /// The role that a message of the protocol asks for.
    #[must_use]
    pub const fn requested(is_control_plane: bool) -> Self {
        if is_control_plane {
            Self::ControlPlane
        } else {
            Self::Worker
        }
    }

    /// What a node measures when it takes this role: `constellation role v1`, then the role's name.
    #[must_use]
    pub const fn event(self) -> &'static [u8] {
        match self {
            Self::ControlPlane => b"constellation role v1control-plane",
            Self::Worker => b"constellation role v1worker",
        }
    }
}

impl FromStr for NodeRole {
    type Err = ParseNodeRoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "controlplane" | "control-plane" => Ok(Self::ControlPlane),
            "worker" => Ok(Self::Worker),
            _ => Err(ParseNodeRoleError(text.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for NodeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ControlPlane => "control-plane",
            Self::Worker => "worker",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_spelling_is_read() {
        for text in ["ControlPlane", "control-plane", "CONTROLPLANE"] {
            assert_eq!(text.parse::<NodeRole>().unwrap(), NodeRole::ControlPlane);
        }
        assert_eq!("Worker".parse::<NodeRole>().unwrap(), NodeRole::Worker);
        assert!("".parse::<NodeRole>().is_err());
        assert!("unknown".parse::<NodeRole>().is_err());
    }
}
