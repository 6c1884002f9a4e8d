//! Takes a worker out of a cluster: its pods, its machine, its Node and its name.

use anyhow::{Result, anyhow, bail};
use cluster_config::{ClusterState, Workspace};
use cluster_objects::Cluster;
use cluster_types::{NodeName, NodeRole};
use error_report::Chain;
use infrastructure::{Machine, MachineStatus, Provider};
use k8s_openapi::api::core::v1::Node;
use kube::api::DeleteParams;
use kube::{Api, Client};
use polling::Failed;
use tokio::task::block_in_place;

use crate::advice::{Advise, given_up};
use crate::drain::{self, drain, found};
use crate::kubeconfig;
use crate::output::shown;

/// What a node is removed from.
pub(crate) struct Removal<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) state: &'a mut ClusterState,
    pub(crate) provider: &'a dyn Provider,
    pub(crate) client: &'a Client,
}

/// The machine of a worker, if there still is one: without it, a name may still have a Node and records.
pub(crate) fn worker(provider: &dyn Provider, state: &ClusterState, name: &NodeName) -> Result<Option<Machine>> {
    let machine = provider.machines()?.into_iter().find(|machine| machine.name == *name);
    let planned = state
        .infrastructure
        .iter()
        .flat_map(|infrastructure| &infrastructure.nodes);
    let mut known = planned.filter(|node| node.name == *name).chain(&machine);
    if known.any(|node| node.role == NodeRole::ControlPlane) {
        bail!("{name} is the cluster's only control plane: to end the cluster, run `constellation terminate`");
    }
    Ok(machine)
}

/// Whether pods can leave the machine in order: a kubelet has to end them.
pub(crate) fn can_be_drained(machine: Option<&Machine>) -> bool {
    machine.is_some_and(|machine| machine.status == MachineStatus::Running)
}

impl Removal<'_> {
    /// 1. Its pods go elsewhere, unless the machine is lost.
    /// 2. The machine and its disk go. What follows cannot be undone by a machine that still runs.
    /// 3. Its Node goes, and with it what Kubernetes still knows of its pods.
    /// 4. Its name and address are free for another machine.
    ///
    /// After an interruption at any point, it can be repeated.
    pub(crate) async fn remove(&mut self, name: &NodeName, lost: bool, detail: &dyn Fn(&str)) -> Result<()> {
        if !lost {
            detail(&format!("draining {name}"));
            drain(self.client, name, drain::LIMIT, detail).await?;
        }
        detail(&format!("ending the machine of {name}"));
        let removed = block_in_place(|| self.provider.remove(name));
        removed.advise("correct this, then run the same command again")?;
        detail(&format!("deleting the Node {name}"));
        self.leave(name).await?;
        self.state.members.remove(name);
        self.state.identities.remove(name);
        self.state.boots.remove(name);
        if let Some(infrastructure) = &mut self.state.infrastructure {
            infrastructure.nodes.retain(|node| node.name != *name);
        }
        Ok(self.workspace.save_state(self.state)?)
    }

    async fn leave(&self, name: &NodeName) -> Result<()> {
        let (nodes, cluster) = (Api::<Node>::all(self.client.clone()), Cluster::new(self.client.clone()));
        let attempt = || async {
            let deleted = nodes.delete(name.as_str(), &DeleteParams::default()).await;
            found(deleted).map_err(|error| Failed::Retry(anyhow!(kubeconfig::in_words(&error))))?;
            let released = cluster.release(name).await;
            released.map_err(|error| Failed::Retry(anyhow!(shown(&Chain(&error).to_string()))))
        };
        kubeconfig::api_schedule()
            .poll(attempt, |_, _| {})
            .await
            .map_err(|error| given_up(error, &format!("the name {name} could not be released")))
            .advise("check the control plane with `constellation status`, then run the same command again")
    }
}
