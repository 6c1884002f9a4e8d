//! Builds and measures the node image that `images/` describes.
//!
//! Needs no privileges: packages are unpacked as archives of files, and nothing is mounted. Nothing from the build machine gets
//! into the image except what the command line names: two builds from the same inputs give the same bytes.

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
mod tools;
mod tree;
mod uki;
mod units;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use attestation::Variants;
use attestation_variants::ReleaseVariants;
use clap::Parser;
use cluster_types::Variant;

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
        #[arg(long, default_value = "unnamed", value_parser = pipeline::parse_image_name)]
        image: String,
        /// The attestation variant of the machines that boot it.
        #[arg(long, default_value_t = ReleaseVariants.supported()[0])]
        variant: Variant,
    },
    /// Print the folder with the lock's unpacked Debian packages, unpacking them if necessary.
    Unpacked {
        /// The purpose of packages.
        purpose: lock::Purpose,
        /// The folder that describes the image.
        #[arg(long, default_value = "images")]
        definition: PathBuf,
        #[command(flatten)]
        cache: cache::CacheArgs,
    },
    /// Print a folder with what a list names of the node's Debian packages, and the libraries that programs among it need.
    Select {
        /// Globs of paths in the packages, written like root.keep.
        list: PathBuf,
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

fn main() -> ExitCode {
    match terminal::parse(std::env::args_os()) {
        Ok(command) => terminal::end(run(command), |error| format!("Error: {error:?}")),
        Err(code) => code,
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Build(build) => pipeline::build(&build)?,
        Command::Measure { uki, image, variant } => pipeline::measure(&uki, variant, &image)?,
        Command::Unpacked {
            purpose,
            definition,
            cache,
        } => pipeline::unpacked_folder(purpose, &definition, &cache)?,
        Command::Select {
            list,
            definition,
            cache,
        } => pipeline::select(&list, &definition, &cache)?,
        Command::Lock { definition, cache } => pipeline::lock(&definition, &cache)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod input {
    use super::*;

    #[test]
    fn bad_input_to_each_flag_gives_one_error_that_names_it() {
        for (arguments, named) in [
            ("", "Usage"),
            ("bake", "bake"),
            ("build", "--out <OUT>"),
            ("build --out x", "--programs <PROGRAMS>"),
            ("build --out= --programs x", "--out <OUT>"),
            ("build --out x --programs=", "--programs <PROGRAMS>"),
            (
                "build --out x --programs x --container-images=",
                "--container-images <CONTAINER_IMAGES>",
            ),
            ("build --out x --programs x --definition=", "--definition <DEFINITION>"),
            ("build --out x --programs x --image", "--image <IMAGE>"),
            ("build --out x --programs x --image=", "--image <IMAGE>"),
            ("build --out x --programs x --image=a\"b", "--image <IMAGE>"),
            ("build --out x --programs x --cache=", "--cache <CACHE>"),
            ("build --out x --programs x --results=", "--results <RESULTS>"),
            ("build --out x --programs x --locked=yes", "--locked"),
            ("build --out x --programs x more", "more"),
            ("build --out x --programs x --variant=x", "--variant <VARIANT>"),
            ("measure", "<UKI>"),
            ("measure x --variant=", "--variant <VARIANT>"),
            ("measure x --image", "--image <IMAGE>"),
            ("measure x --image=$a", "--image <IMAGE>"),
            ("unpacked", "<PURPOSE>"),
            ("unpacked kitchen", "<PURPOSE>"),
            ("unpacked node --definition=", "--definition <DEFINITION>"),
            ("unpacked node --cache=", "--cache <CACHE>"),
            ("select", "<LIST>"),
            ("select x --definition=", "--definition <DEFINITION>"),
            ("select x --cache=", "--cache <CACHE>"),
            ("lock --definition=", "--definition <DEFINITION>"),
            ("lock --cache=", "--cache <CACHE>"),
            ("lock now", "now"),
        ] {
            let words = std::iter::once("image-builder").chain(arguments.split_whitespace());
            let error = Command::try_parse_from(words).err().unwrap().to_string();
            assert!(error.contains(named), "{arguments}: {error}");
        }
    }

    #[test]
    fn a_folder_or_file_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("node-init"), "").unwrap();
        let build = format!("build --out /nonexistent/out --programs {}", folder.path().display());
        for (arguments, expected) in [
            (
                "build --out x --programs /nonexistent",
                "--programs: /nonexistent/node-init is missing",
            ),
            (
                &format!("{build} --container-images /nonexistent"),
                "--container-images: /nonexistent is not a folder",
            ),
            (
                &format!("{build} --definition /nonexistent"),
                "cannot read /nonexistent",
            ),
            ("measure /nonexistent", "cannot read /nonexistent"),
            ("unpacked node --definition /nonexistent", "cannot read /nonexistent"),
            ("select /nonexistent", "cannot read /nonexistent"),
            ("lock --definition /nonexistent", "cannot read /nonexistent"),
        ] {
            let words = std::iter::once("image-builder").chain(arguments.split_whitespace());
            let error = run(Command::try_parse_from(words).unwrap()).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{arguments}: {error:#}");
        }
    }

    #[test]
    fn a_variant_that_no_release_has_is_refused_before_anything_is_built() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("node-init"), "").unwrap();
        let programs = folder.path().display();
        let released = ReleaseVariants.supported();
        for variant in Variant::ALL.iter().filter(|variant| !released.contains(variant)) {
            let build = format!(
                "image-builder build --out /nonexistent --programs {programs} --definition /nonexistent --variant {variant}"
            );
            let error = run(Command::try_parse_from(build.split_whitespace()).unwrap()).unwrap_err();
            let expected = format!("--variant: this program cannot appraise {variant}; it can appraise ");
            assert!(format!("{error:#}").starts_with(&expected), "{error:#}");
        }
    }
}
