//! [`constellation`] with all providers of machines.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use attestation::Variants;
use cluster_config::{Acceleration, ProviderConfig, Workspace};
use constellation::Providers;
use infrastructure::Provider;
use infrastructure_qemu::{AccelerationChoice, Helper, HelperCommand, QemuOptions, QemuProvider, RunFolder};

/// Runs this process's command line, or the helper that it names.
pub(crate) async fn run(variants: &dyn Variants) -> ExitCode {
    if let Some(helper) = HelperCommand::of(std::env::args_os()) {
        let Err(error) = helper.run().await;
        return constellation::failed(error.into());
    }
    constellation::run(std::env::args_os(), &Released, variants).await
}

struct Released;

impl Providers for Released {
    fn configured(&self, workspace: &Workspace, config: &ProviderConfig) -> anyhow::Result<Box<dyn Provider>> {
        match config {
            ProviderConfig::Qemu(config) => qemu(
                workspace,
                QemuOptions {
                    acceleration: match config.acceleration {
                        Acceleration::Auto => AccelerationChoice::Auto,
                        Acceleration::Kvm => AccelerationChoice::Kvm,
                        Acceleration::Software => AccelerationChoice::Software,
                    },
                    firmware: config.firmware.clone(),
                    flushes: config.flushes,
                },
            ),
        }
    }

    fn existing(&self, workspace: &Workspace) -> anyhow::Result<Box<dyn Provider>> {
        qemu(workspace, QemuOptions::default())
    }
}

fn qemu(workspace: &Workspace, options: QemuOptions) -> anyhow::Result<Box<dyn Provider>> {
    let program: PathBuf = std::env::current_exe().context("cannot find this program's own path")?;
    let folder = RunFolder::in_workspace(workspace.folder());
    Ok(Box::new(QemuProvider::new(folder, Helper::new(program), options)))
}
