//! The names of the files, as the predecessor's users know them.

/// The configuration file, owned by the user.
pub const CONFIG: &str = "constellation-conf.yaml";
/// The state file, written only by the CLI.
pub const STATE: &str = "constellation-state.yaml";
/// The root of all keys.
pub const MASTER_SECRET: &str = "constellation-mastersecret.json";
/// The administrator's kubeconfig.
pub const ADMIN_CONF: &str = "constellation-admin.conf";
/// The log of a node whose init failed.
pub const CLUSTER_LOG: &str = "constellation-cluster.log";
/// How long each step of the last run took.
pub const TIMINGS: &str = "timings.json";
