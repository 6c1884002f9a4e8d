//! The key service, with the attestation variants of a release.

use anyhow::Result;
use attestation_variants::ReleaseVariants;

#[tokio::main]
async fn main() -> Result<()> {
    key_service::run(&ReleaseVariants).await
}
