//! The CLI with an attestation variant that only tests have.

#[path = "../src/released.rs"]
mod released;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    released::run(test_machines::chosen().variants()).await
}
