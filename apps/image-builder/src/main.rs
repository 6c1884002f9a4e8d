//! Builds and measures the node image that `images/` describes.
//!
//! Needs no privileges: packages are unpacked as archives of files, and nothing is mounted. Nothing of the building machine gets
//! into the image except the bytes named on the command line: two builds from the same inputs give the same bytes.

mod cache;
mod definition;
mod disk;
mod glob;
mod initramfs;
mod kernel;
mod lock;
mod packages;
mod pe;
mod pipeline;
mod prediction;
mod progress;
mod tools;
mod tree;
mod uki;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// Builds and measures the node image.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Build the disk image and compute its reference values.
    Build(pipeline::Build),
    /// Compute the reference values of a unified kernel image.
    Measure {
        /// The unified kernel image.
        uki: PathBuf,
        /// Name and version to write into the document.
        #[arg(long, default_value = "unnamed")]
        image: String,
    },
    /// Print the folder with the unpacked Debian packages of the lock, unpacking them if need be.
    Unpacked {
        /// What the packages are for.
        purpose: lock::Purpose,
        /// The folder that describes the image.
        #[arg(long, default_value = "images")]
        definition: PathBuf,
        #[command(flatten)]
        cache: cache::CacheArgs,
    },
    /// Choose the newest versions of the Debian packages and write them to packages.lock.
    Lock {
        /// The folder that describes the image.
        #[arg(long, default_value = "images")]
        definition: PathBuf,
        #[command(flatten)]
        cache: cache::CacheArgs,
    },
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Build(build) => pipeline::build(&build),
        Command::Measure { uki, image } => pipeline::measure(&uki, &image),
        Command::Unpacked {
            purpose,
            definition,
            cache,
        } => pipeline::unpacked_folder(purpose, &definition, &cache),
        Command::Lock { definition, cache } => pipeline::lock(&definition, &cache),
    }
}
