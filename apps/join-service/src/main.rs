//! The join service, with the attestation variants of a release.

use anyhow::Result;
use attestation_variants::ReleaseVariants;

#[tokio::main]
async fn main() -> Result<()> {
    join_service::run(&ReleaseVariants).await
}
