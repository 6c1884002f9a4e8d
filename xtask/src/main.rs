//! Our automation, in Rust: `cargo xtask <command>`.

use anyhow::Result;
use clap::Parser;

/// What `cargo xtask` can do.
#[derive(Parser)]
#[command(about = "Builds, checks and generates parts of Constellation")]
enum Command {}

fn main() -> Result<()> {
    match Command::parse() {}
}
