//! One module for each command.

mod apply;
mod audit;
mod config;
mod init;
mod mini;
mod mirror;
mod node;
mod nodes;
mod policy;
mod publish;
mod recover;
mod status;
mod terminate;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use attestation::Variants;
use camino::Utf8Path;
use clap::CommandFactory;
use cluster_config::Workspace;

use crate::arguments::{
    Arguments, AuditCommand, Command, ConfigCommand, MiniCommand, MirrorCommand, NodeCommand, PolicyCommand,
};
use crate::output::print;
use crate::providers::Providers;

/// Runs the command that was typed.
pub(crate) async fn run(arguments: Arguments, providers: &dyn Providers, variants: &dyn Variants) -> Result<ExitCode> {
    let workspace = || Workspace::open(arguments.workspace.as_std_path());
    match arguments.command {
        Command::Config(ConfigCommand::Generate {
            provider,
            name,
            sources,
        }) => config::generate(&workspace()?, provider, name, &sources, variants).await?,
        Command::Apply(confirmation) => apply::run(&workspace()?, confirmation.yes, providers, variants).await?,
        Command::Recover => recover::run(&workspace()?, providers, variants).await?,
        Command::Mini(MiniCommand::Up { sources, .. }) => {
            mini::up(arguments.workspace.as_std_path(), &sources, providers, variants).await?;
        }
        Command::Mini(MiniCommand::Down(confirmation)) => mini::down(&workspace()?, &confirmation, providers)?,
        Command::Status => status::run(&workspace()?, providers).await?,
        Command::Verify(verify) => return verify::run(&workspace()?, &verify, variants).await,
        Command::Policy(PolicyCommand::Show { output }) => return policy::show(&workspace()?, output).await,
        Command::Node(NodeCommand::List) => node::list(&workspace()?, providers).await?,
        Command::Node(NodeCommand::Remove(removal)) => node::remove(&workspace()?, &removal, providers).await?,
        Command::Audit(AuditCommand::Verify { files }) => audit::check(&files)?,
        Command::Terminate(confirmation) => terminate::run(&workspace()?, &confirmation, providers)?,
        Command::Mirror(MirrorCommand::Create {
            folder,
            from,
            digest,
            list,
        }) => {
            let list = list.as_deref().map(Utf8Path::as_std_path);
            mirror::create(folder.as_std_path(), from.as_ref(), digest, list).await?;
        }
        Command::Version => version()?,
        Command::Completion { shell } => completion(shell)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn version() -> Result<()> {
    print(&format!("Version:\t{}", env!("CARGO_PKG_VERSION")))?;
    print(&format!("Kubernetes:\t{}", cluster_config::DEFAULT_KUBERNETES_VERSION))?;
    let (system, processor) = (std::env::consts::OS, std::env::consts::ARCH);
    Ok(print(&format!("Platform:\t{system}/{processor}"))?)
}

fn completion(shell: clap_complete::Shell) -> Result<()> {
    let mut command = Arguments::command();
    // Into memory, because it panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "constellation", &mut script);
    Ok(print(String::from_utf8_lossy(&script).trim_end())?)
}
