//! Applies the objects that run inside the cluster: configuration and services.

use std::net::SocketAddrV4;

use anyhow::{Context, Result, anyhow};
use attestation::AttestedIdentity;
use cluster_objects::{Cluster, JoinConfig, NodeRecordError, components_config_map};
use deployment::{Object, PodNetwork, admission, namespace, objects, pod_network};
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
const RECORDED: &str = "somebody with write access to the namespace constellation-nodes gave them away: find out who, delete the ConfigMaps named \
                        above there (`node-…`, `address-…` or `machine-…`), then run the same command again";
/// The API server's port on the private network.
const KUBERNETES_PORT: u16 = 6443;

/// Applies everything. Objects that are already applied stay as they are.
pub(crate) async fn run(run: &Run<'_>, step: &Step<'_>) -> Result<()> {
    let config = join_config(run)?;
    let network = PodNetwork {
        pod_cidr: run.config.pod_cidr.to_string(),
        node_interface: format!("^{}$", run.infrastructure()?.node_interface),
        api_server: api_server(run)?,
    };
    let mut wanted = admission();
    wanted.push(Object::new(components_config_map(&run.components)));
    wanted.extend(pod_network(&network));
    wanted.extend(objects(config.to_config_map()));
    let client = kubeconfig::client(run.workspace).await?;
    policy::must_not_be_older(run, &client).await?;
    apply(run, &client, &namespace()).await?;
    record_first_node(run, &client).await?;
    for object in &wanted {
        step.detail(&object.title());
        apply(run, &client, object).await?;
    }
    Ok(())
}

/// Name and address of the first node belong to its machine, so that no machine that joins gets them.
async fn record_first_node(run: &Run<'_>, client: &Client) -> Result<()> {
    let first = machines::first_node(run.infrastructure()?)?;
    let Some(identity) = run.state.identities.get(&first.name) else {
        let error = anyhow!(
            "constellation-state.yaml does not have the attested identity of {}",
            first.name
        );
        return Err(error)
            .advise("restore it from a backup; otherwise terminate the cluster with `constellation terminate`");
    };
    let (cluster, address) = (Cluster::new(client.clone()), *api_server(run)?.ip());
    let attempt = || async {
        let claimed = cluster
            .claim(&first.name, address, AttestedIdentity::new(*identity))
            .await;
        claimed.map_err(|error| {
            let told = anyhow!(shown(&Chain(&error).to_string()));
            match error {
                NodeRecordError::Api { .. } | NodeRecordError::AtTheSameTime(_) => {
                    machines::retry(&*run.provider, told)
                }
                _ => Failed::Stop(advise(told, Vec::new(), RECORDED)),
            }
        })
    };
    kubeconfig::api_schedule()
        .poll(attempt, |_, _| {})
        .await
        .map_err(|error| given_up(error, &format!("the name of {} could not be recorded", first.name)))
        .advise("check the control plane with `constellation status`, then run the same command again")
}

fn join_config(run: &Run<'_>) -> Result<JoinConfig> {
    Ok(JoinConfig {
        policy: run.policy()?.into_signed(),
        measurement_salt: run.state.measurement_salt,
        api_server_endpoint: api_server(run)?.into(),
        components: run.components.config_map_name(),
        component_mirror: run.infrastructure()?.component_mirror.clone(),
    })
}

/// Where nodes reach it.
fn api_server(run: &Run<'_>) -> Result<SocketAddrV4> {
    let host = &run.infrastructure()?.in_cluster_endpoint;
    let address = host
        .parse()
        .with_context(|| format!("{host:?} is not a control plane's address"))?;
    Ok(SocketAddrV4::new(address, KUBERNETES_PORT))
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
