//! Our services as processes, with a real API server and machines that attest.
//!
//! Each is started from a folder of programs: a test has the one that cargo built it with, a bench the static ones of the node
//! image. [`ControlPlane`] holds a join service with all it needs, and [`JoiningNode`] is a machine that wants to join. Nothing a
//! release contains depends on this crate; `xtask tidy` checks that.

mod attestation_daemon;
mod control_plane;
mod join_config;
mod key_service;
mod node;
mod process;
mod verification_service;

pub use attestation_daemon::AttestationDaemon;
pub use control_plane::{Admitted, ControlPlane};
pub use join_config::{JoinConfigExample, SALT, mount};
pub use key_service::{KeyService, cluster_config};
pub use node::{
    JoiningNode, client_certificate_request, join_request, presented, server_session, serving_certificate_request,
};
pub use process::{ServiceProcess, must_say_one_error};
pub use verification_service::VerificationService;
