//! The verification service, with an attestation variant that only tests have.

use anyhow::Result;

#[tokio::main]
async fn main() -> Result<()> {
    verification_service::run(test_machines::chosen().variants()).await
}
