//! The attester of a service that has no device: it asks the attestation daemon of its node.
//!
//! The daemon gives Evidence for the purposes of the socket alone, for sessions that the service accepted. Whoever takes the service over
//! gets no other.

mod client;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};

pub use client::{AttestationDaemon, DescribeError};

/// What a service attests with.
#[derive(Clone, Debug, clap::Args)]
pub struct AttestationArgs {
    /// Unix socket of this node's attestation daemon for this service.
    #[arg(long, default_value = "/run/constellation/attestation/socket")]
    attestation_socket: PathBuf,
}

impl AttestationArgs {
    /// Asks the daemon what it attests with.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn connect(self) -> Result<Arc<AttestationDaemon>> {
        let socket = self.attestation_socket;
        let daemon = AttestationDaemon::connect(&socket).await;
        let daemon =
            daemon.with_context(|| format!("--attestation-socket: cannot attest with {}", socket.display()))?;
        Ok(Arc::new(daemon))
    }
}
