//! Our automation, in Rust: `cargo xtask <command>`.

mod image;
mod kubernetes;
mod progress;
mod service_images;
mod tidy;

use anyhow::Result;
use clap::Parser;

/// What `cargo xtask` can do.
#[derive(Parser)]
#[command(about = "Builds, checks and generates parts of Constellation")]
enum Command {
    /// Build, measure and check the node image.
    #[command(subcommand)]
    Image(image::ImageCommand),
    Kubernetes(kubernetes::KubernetesArgs),
    /// Check rules about the tree that no compiler knows.
    Tidy,
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Image(command) => image::run(&command),
        Command::Kubernetes(args) => kubernetes::run(&args),
        Command::Tidy => tidy::run(),
    }
}
