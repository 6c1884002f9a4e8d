//! The machines a cluster should have, and whether they run.

use std::collections::BTreeSet;

use anyhow::{Error, Result, anyhow};
use cluster_config::{ClusterConfig, ClusterState};
use infrastructure::{ClusterSpec, MachineStatus, Provider};
use polling::Failed;

use crate::advice::advise;

/// The machines that a configuration describes.
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

/// Fails if a machine has stopped, with the reason on its console.
pub(crate) fn check_running(provider: &dyn Provider) -> Result<()> {
    for machine in provider.machines()? {
        if let MachineStatus::Stopped { reason, console } = machine.status {
            let error = anyhow!("{} stopped: {reason}", machine.name);
            return Err(advise(error, console, provider.advice_on_stopped()));
        }
    }
    Ok(())
}

/// Failures are retried while all machines run. A machine that has stopped is a better explanation, and final.
pub(crate) fn retry(provider: &dyn Provider, error: impl Into<Error>) -> Failed<Error> {
    match check_running(provider) {
        Ok(()) => Failed::Retry(error.into()),
        Err(stopped) => Failed::Stop(stopped),
    }
}
