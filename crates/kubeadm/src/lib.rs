//! kubeadm: its configuration, rendered from what a cluster and a node are, and runs of `init` and `join`.
//!
//! Kubernetes is installed by kubeadm alone; this crate decides the hardened settings and hands them over. Secrets reach
//! kubeadm only in files of mode 0600 in memory that are removed when it ends, and never its arguments.
//!
//! What this crate does not do: it installs no programs, fetches no images and talks to no API server.

mod config;
mod folders;
mod kubelet_certificate;
mod names;
mod render;
mod run;
mod settings;
mod token;

pub use folders::Folders;
pub use kubelet_certificate::{IssueCertificateError, KubeletKey, PendingCertificate};
pub use names::{CertSan, ClusterName, ParseNameError};
pub use run::{InitError, JoinError, Kubeadm, Kubeconfig};
pub use settings::{ClusterSettings, JoinSettings, NodeSettings, ProxyMode};
pub use token::{BootstrapToken, ParseTokenError};
