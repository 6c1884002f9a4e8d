//! Our automation, in Rust: `cargo xtask <command>`.

mod folders;
mod image;
mod service_images;
mod tidy;
mod upstream;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// What `cargo xtask` can do.
#[derive(Parser)]
#[command(about = "Builds, checks and generates parts of Constellation")]
enum Command {
    /// Build, measure and check the node image.
    #[command(subcommand)]
    Image(image::ImageCommand),
    Upstream(upstream::UpstreamArgs),
    Compile(workspace::CompileArgs),
    /// Check rules about the tree that the compiler does not check.
    Tidy,
}

fn main() -> ExitCode {
    match terminal::parse(std::env::args_os()) {
        Ok(command) => terminal::end(run(command), |error| format!("Error: {error:?}")),
        Err(code) => code,
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Image(command) => image::run(&command)?,
        Command::Upstream(args) => upstream::run(&args)?,
        Command::Compile(args) => workspace::run(&args)?,
        Command::Tidy => tidy::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod input {
    use super::*;

    fn parse(arguments: &str) -> Result<Command, clap::Error> {
        Command::try_parse_from(std::iter::once("xtask").chain(arguments.split_whitespace()))
    }

    #[test]
    fn bad_input_to_each_flag_gives_one_error_that_names_it() {
        for (arguments, named) in [
            ("", "Usage"),
            ("clean", "clean"),
            ("tidy now", "now"),
            ("image", "Usage"),
            ("image build", "--out <DIR>"),
            ("image build --out=", "--out <DIR>"),
            ("image build --out x --programs=", "--programs <DIR>"),
            ("image build --out x --container-images=", "--container-images <DIR>"),
            ("image build --out x --cache=", "--cache <DIR>"),
            ("image build --out x --locked=yes", "--locked"),
            ("image reproduce", "--out <DIR>"),
            ("image reproduce --out=", "--out <DIR>"),
            ("image unpacked", "<PURPOSE>"),
            ("image lock now", "now"),
            ("image measure", "<UKI>"),
            ("upstream --version 1.35", "--version <VERSION>"),
            ("upstream --out=", "--out <DIR>"),
            ("upstream --only etcd", "--out <DIR>"),
            ("upstream --cache=", "--cache <DIR>"),
            ("upstream now", "now"),
            ("compile", "<PROGRAM>"),
        ] {
            let error = parse(arguments).err().unwrap().to_string();
            assert!(error.contains(named), "{arguments}: {error}");
        }
    }

    #[test]
    fn a_program_that_is_not_built_here_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().display();
        let arguments = format!("upstream --only etcd,docker --out {folder}/out --cache {folder}/cache");
        let Ok(Command::Upstream(arguments)) = parse(&arguments) else {
            panic!("{arguments}")
        };
        let error = upstream::run(&arguments).unwrap_err().to_string();
        assert!(
            error.starts_with("--only: no program is named \"docker\"; there are: "),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_is_not_of_this_workspace_is_named() {
        let Ok(Command::Compile(arguments)) = parse("compile docker") else {
            panic!("compile takes names")
        };
        let error = workspace::run(&arguments).unwrap_err().to_string();
        assert_eq!(error, "no program of this workspace is named \"docker\"");
    }
}
