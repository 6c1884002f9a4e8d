//! What a cluster's machines should be, and whether they run.

use std::collections::BTreeSet;

use anyhow::{Error, Result, anyhow};
use cluster_config::{ClusterConfig, ClusterState};
use infrastructure::{ClusterSpec, MachineStatus, Provider};
use polling::Failed;

use crate::advice::advise;

/// The machines that a configuration asks for.
pub(crate) fn spec(config: &ClusterConfig, state: &ClusterState) -> ClusterSpec {
    ClusterSpec {
        name: config.name.clone(),
        image: config.image.clone(),
        init_secret_hash: state.init_secret.hash(),
        mirror: config.mirror.clone(),
        nodes: config.nodes(),
        members: state.members.clone(),
        later: BTreeSet::new(),
    }
}

/// An error if a machine stopped: with what its console says.
pub(crate) fn check_running(provider: &dyn Provider) -> Result<()> {
    for machine in provider.machines()? {
        if let MachineStatus::Stopped { reason, console } = machine.status {
            let error = anyhow!("{} stopped: {reason}", machine.name);
            return Err(advise(error, console, provider.advice_on_stopped()));
        }
    }
    Ok(())
}

/// What failed is tried again while all machines run. One that stopped is a better explanation, and final.
pub(crate) fn retry(provider: &dyn Provider, error: impl Into<Error>) -> Failed<Error> {
    match check_running(provider) {
        Ok(()) => Failed::Retry(error.into()),
        Err(stopped) => Failed::Stop(stopped),
    }
}
