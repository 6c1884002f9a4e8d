//! The released program: its providers of machines and its attestation variants.

mod released;

use std::process::ExitCode;

use attestation_variants::ReleaseVariants;

#[tokio::main]
async fn main() -> ExitCode {
    released::run(&ReleaseVariants).await
}
