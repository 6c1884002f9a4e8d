//! The attestation daemon, with the attestation variants of a release.

use anyhow::Result;
use attestation_variants::ReleaseVariants;

#[tokio::main]
async fn main() -> Result<()> {
    attestation_daemon::run(&ReleaseVariants).await
}
