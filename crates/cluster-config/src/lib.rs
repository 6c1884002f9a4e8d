//! The files of a workspace: configuration, state, master secret, kubeconfig.
//!
//! Configuration belongs to the user and is written once, by `config generate`; no command rewrites it. State belongs to
//! the program. Every file is replaced as a whole or not at all, and those with secrets have mode 0600.
//!
//! No network, no processes, no clock.

mod check;
mod config;
mod example;
mod made_of;
pub mod names;
mod problems;
mod raw;
mod state;
mod workspace;
mod yaml;

pub use check::{ClusterNameError, check_cluster_name};
pub use config::{
    Acceleration, ClusterConfig, DEFAULT_KUBERNETES_VERSION, NodeGroup, ParseConfigError, ProviderConfig, QemuConfig,
};
pub use example::{ExampleOptions, example};
pub use infrastructure::{MirrorSource, ParseMirrorSourceError};
pub use made_of::{Difference, MadeOf};
pub use problems::{ConfigProblems, Problem};
pub use state::{Boot, ClusterState, InitProgress, InitSecret, ParseStateError};
pub use workspace::{Workspace, WorkspaceError, WorkspaceLock};
pub use yaml::from_yaml;
