//! `constellation`: creates, shows, verifies and terminates confidential Kubernetes clusters.
//!
//! Results go to standard output, progress and errors to standard error. Every command can be repeated after it was
//! interrupted at any point: what it is about to do is stored first.
//!
//! This is the program without its providers of machines and attestation variants: a release has those that its `main.rs`
//! gives it, tests have their own.

mod advice;
mod arguments;
mod bootstrapper;
mod commands;
mod drain;
mod freshness;
mod kubeconfig;
mod machines;
mod mirror;
mod output;
mod providers;
mod removal;
mod run;
mod trust;
mod unknown;

use std::ffi::OsString;
use std::process::ExitCode;

use attestation::Variants;

pub use crate::providers::Providers;

use crate::arguments::Arguments;

/// Runs a command line, whose first word is the program's name.
pub async fn run(
    arguments: impl Iterator<Item = OsString>,
    providers: &dyn Providers,
    variants: &dyn Variants,
) -> ExitCode {
    let arguments: Arguments = match terminal::parse(arguments) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    // In a separate task, so that Ctrl-C is noticed while a command blocks.
    tokio::spawn(end_on_interrupt());
    terminal::end(commands::run(arguments, providers, variants).await, advice::render)
}

/// Prints an error, and the next step if there is one.
pub fn failed(error: anyhow::Error) -> ExitCode {
    terminal::end(Err(error), advice::render)
}

/// Whatever has begun is kept; every step can be repeated.
async fn end_on_interrupt() {
    if tokio::signal::ctrl_c().await.is_ok() {
        output::note("\ninterrupted; run the same command again to continue");
        // 128 + SIGINT, as in shells.
        std::process::exit(130);
    }
}
