//! kubeadm: renders its configuration from the settings of a cluster and a node, and runs `init` and `join`.
//!
//! kubeadm alone sets up Kubernetes; this crate decides the hardened settings and hands them over. Secrets reach kubeadm
//! only in files in memory, of mode 0600, that are removed when it ends; they are never arguments.
//!
//! What this crate does not do: it installs no programs, fetches no images, and asks the API server for nothing but its health.

mod api_server;
mod config;
mod folders;
mod kubelet_authority;
mod kubelet_kubeconfig;
mod names;
mod render;
mod run;
mod settings;
mod token;

pub use api_server::{ApiServer, Checking, HealthCheckError, OwnApiServer, StartTimeoutError};
pub use folders::Folders;
pub use names::{CertSan, ClusterName, ParseNameError};
pub use render::{ADMISSION, ADMISSION_PLUGINS};
pub use run::{InitError, JoinError, Kubeadm, Kubeconfig};
pub use settings::{ClusterSettings, JoinSettings, NodeSettings, ProxyMode};
pub use token::{BootstrapToken, ParseTokenError};
