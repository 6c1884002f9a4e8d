//! Our automation, in Rust: `cargo xtask <command>`.

mod kubernetes;
mod progress;

use anyhow::Result;
use clap::Parser;

/// What `cargo xtask` can do.
#[derive(Parser)]
#[command(about = "Builds, checks and generates parts of Constellation")]
enum Command {
    Kubernetes(kubernetes::KubernetesArgs),
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Kubernetes(args) => kubernetes::run(&args),
    }
}
