//! The attestation daemon, with an attestation variant that only tests have.

use anyhow::Result;

#[tokio::main]
async fn main() -> Result<()> {
    attestation_daemon::run(test_machines::chosen().variants()).await
}
