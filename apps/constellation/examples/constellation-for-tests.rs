//! The CLI with the machines and attestation variants that only tests have. Tests run it; a release is `main.rs`.

use std::process::ExitCode;

use cluster_config::{ProviderConfig, Workspace};
use constellation::Providers;
use infrastructure::Provider;
use test_provider::TestProvider;

#[tokio::main]
async fn main() -> ExitCode {
    constellation::run(std::env::args_os(), &OnTestMachines, test_machines::chosen().variants()).await
}

struct OnTestMachines;

impl Providers for OnTestMachines {
    /// Whatever the configuration names.
    fn configured(&self, workspace: &Workspace, _: &ProviderConfig) -> anyhow::Result<Box<dyn Provider>> {
        self.existing(workspace)
    }

    fn existing(&self, workspace: &Workspace) -> anyhow::Result<Box<dyn Provider>> {
        Ok(Box::new(TestProvider::new(workspace.folder())))
    }
}
