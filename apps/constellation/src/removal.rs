//! Takes a node out of a cluster: its pods, its place in etcd, its machine, its Node and its name.

use std::net::Ipv4Addr;

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
use crate::etcd;
use crate::kubeconfig;
use crate::output::shown;

/// What a node is removed from.
pub(crate) struct Removal<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) state: &'a mut ClusterState,
    pub(crate) provider: &'a dyn Provider,
    pub(crate) client: &'a Client,
}

/// A node that is to leave, and what this side knows of it.
pub(crate) struct Leaver {
    name: NodeName,
    /// Without it, a name may still have a Node and records.
    pub(crate) machine: Option<Machine>,
    /// Of a control plane, whose etcd is known by it.
    address: Option<Ipv4Addr>,
}

impl Leaver {
    /// Refuses the only control plane.
    pub(crate) fn find(provider: &dyn Provider, state: &ClusterState, name: &NodeName) -> Result<Self> {
        let machine = provider.machines()?.into_iter().find(|machine| machine.name == *name);
        let planned = state
            .infrastructure
            .iter()
            .flat_map(|infrastructure| &infrastructure.nodes);
        let control_planes: Vec<_> = planned
            .chain(&machine)
            .filter(|node| node.role == NodeRole::ControlPlane)
            .collect();
        let address = control_planes
            .iter()
            .find(|node| node.name == *name)
            .map(|node| node.address);
        let stays = |node: &&&Machine| node.name != *name && state.members.contains(&node.name);
        if address.is_some() && control_planes.iter().find(stays).is_none() {
            bail!("{name} is the cluster's only control plane: to end the cluster, run `constellation terminate`");
        }
        Ok(Self {
            name: name.clone(),
            machine,
            address,
        })
    }

    /// Whether pods can leave the machine in order: a kubelet has to end them.
    pub(crate) fn can_be_drained(&self) -> bool {
        let status = self.machine.as_ref().map(|machine| &machine.status);
        status == Some(&MachineStatus::Running)
    }
}

impl Removal<'_> {
    /// 1. Its pods go elsewhere, unless the machine is lost.
    /// 2. A control plane leaves etcd, while it may still run: the others need not wait for one that is gone.
    /// 3. The machine and its disk go. What follows cannot be undone by a machine that still runs.
    /// 4. Its Node goes, and with it what Kubernetes still knows of its pods.
    /// 5. Its name and address are free for another machine.
    ///
    /// After an interruption at any point, it can be repeated.
    pub(crate) async fn remove(&mut self, leaver: &Leaver, lost: bool, detail: &dyn Fn(&str)) -> Result<()> {
        let name = &leaver.name;
        if !lost {
            detail(&format!("draining {name}"));
            drain(self.client, name, drain::LIMIT, detail).await?;
        }
        if let Some(address) = leaver.address {
            detail(&format!("removing {name} from etcd"));
            etcd::remove_member(self.client, name, address).await?;
        }
        detail(&format!("ending the machine of {name}"));
        let removed = block_in_place(|| self.provider.remove(name));
        removed.advise("correct this, then run the same command again")?;
        if let Some(address) = leaver.address {
            // It may have added itself again while it still ran: another machine would then start as that member.
            etcd::remove_member(self.client, name, address).await?;
        }
        detail(&format!("deleting the Node {name}"));
        self.leave(name).await?;
        self.state.forget(name);
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
