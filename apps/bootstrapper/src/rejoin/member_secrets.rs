use cluster_policy::BelievedPolicy;
use cluster_types::NodeRole;
use secret::{MeasurementSecret, StateDiskKey};

/// What opens the state disk again, and which member this node was: as a control plane of the operator's cluster says, or the operator.
pub(super) struct MemberSecrets {
    pub(super) role: NodeRole,
    pub(super) policy: BelievedPolicy,
    pub(super) state_disk_key: StateDiskKey,
    pub(super) measurement_secret: MeasurementSecret,
    pub(super) source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A control plane, which has seen every policy that this node has seen, unless somebody took it back.
    Cluster,
    /// An operator, whose workspace may be a backup from before the newest policy. They prove who they are in this session.
    Operator,
}
