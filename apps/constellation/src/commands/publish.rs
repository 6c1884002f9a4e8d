//! Publishes what nodes that join need: the newest policy, and the list of components that it names.

use std::net::SocketAddrV4;

use anyhow::{Context, Result, anyhow};
use cluster_objects::{JoinConfig, components_config_map};
use deployment::Object;
use error_report::Chain;
use kube::Client;
use polling::Failed;
use terminal::Step;

use crate::advice::{Advise, advise, given_up};
use crate::commands::policy;
use crate::output::shown;
use crate::run::Run;
use crate::{kubeconfig, machines};

const REFUSED: &str = "compare the object in the cluster with the reason (`kubectl get`); if nobody changed it there, this is a defect \
                       of constellation";
/// The API server's port on the private network.
const KUBERNETES_PORT: u16 = 6443;

/// A cluster begins with what its first node published. What is the same already stays as it is.
pub(crate) async fn run(run: &Run<'_>, step: &Step<'_>) -> Result<()> {
    let config = join_config(run)?;
    let client = kubeconfig::client(run.workspace).await?;
    policy::must_not_be_older(run, &client).await?;
    for object in [
        Object::new(components_config_map(&run.components)),
        Object::new(config.to_config_map()),
    ] {
        step.detail(&object.title());
        apply(run, &client, &object).await?;
    }
    Ok(())
}

fn join_config(run: &Run<'_>) -> Result<JoinConfig> {
    let host = &run.infrastructure()?.in_cluster_endpoint;
    let address = host
        .parse()
        .with_context(|| format!("{host:?} is not a control plane's address"))?;
    Ok(JoinConfig {
        policy: run.policy()?.into_signed(),
        measurement_salt: run.state.measurement_salt,
        api_server_endpoint: SocketAddrV4::new(address, KUBERNETES_PORT).into(),
        components: run.components.config_map_name(),
        component_mirror: run.infrastructure()?.component_mirror.clone(),
    })
}

async fn apply(run: &Run<'_>, client: &Client, object: &Object) -> Result<()> {
    let attempt = || async {
        let applied = object.apply(client).await;
        applied.map_err(|error| {
            let told = anyhow!(shown(&Chain(&error).to_string()));
            if error.is_final() {
                Failed::Stop(advise(told, Vec::new(), REFUSED))
            } else {
                machines::retry(&*run.provider, told)
            }
        })
    };
    kubeconfig::api_schedule()
        .poll(attempt, |_, _| {})
        .await
        .map_err(|error| given_up(error, &format!("{} could not be applied", object.title())))
        .advise("check the control plane with `constellation status`, then run the same command again")
}
