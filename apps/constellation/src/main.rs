//! `constellation`: makes, shows, verifies and ends confidential Kubernetes clusters.
//!
//! Results go to standard output, everything about how it goes to standard error. Every command can be repeated after it
//! was interrupted at any point; what it does is stored before it is done.

mod advice;
mod arguments;
mod commands;
mod kubeconfig;
mod machines;
mod mirror;
mod output;
mod progress;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // On a task of its own, so that Ctrl-C is noticed while a command blocks.
    tokio::spawn(end_on_interrupt());
    match commands::run(arguments).await {
        Ok(code) => code,
        Err(error) => {
            output::note(&advice::render(&error));
            ExitCode::FAILURE
        }
    }
}

/// What was begun stays; every step can be repeated.
async fn end_on_interrupt() {
    if tokio::signal::ctrl_c().await.is_ok() {
        output::note("\ninterrupted; the same command goes on where this one stopped");
        // 128 + SIGINT, as shells have it.
        std::process::exit(130);
    }
}
