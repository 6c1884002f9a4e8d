//! The key service, with an attestation variant that only tests have.

use anyhow::Result;

#[tokio::main]
async fn main() -> Result<()> {
    key_service::run(test_machines::chosen().variants()).await
}
