//! The nodes as Kubernetes sees them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use cluster_types::NodeName;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use polling::{Failed, Schedule};
use terminal::Step;

use crate::advice::{advise, given_up};
use crate::run::Run;
use crate::{kubeconfig, machines};

/// Time limit until all nodes are ready once the services are applied. Under software emulation, joining takes a minute or two.
const LIMIT: Duration = Duration::from_secs(1800);
const INTERVAL: Duration = Duration::from_secs(2);

/// One node as Kubernetes sees it.
pub(crate) struct Seen {
    pub(crate) ready: bool,
    pub(crate) version: String,
}

/// Waits until every node of the configuration is ready, and records which ones are part of the cluster.
pub(crate) async fn wait(run: &mut Run<'_>, step: &Step<'_>) -> Result<()> {
    let client = kubeconfig::client(run.workspace).await?;
    // Borrowed between two awaits only.
    let run = RefCell::new(run);
    let first_missing = Cell::new(None::<NodeName>);
    let attempt = || async {
        let seen = list(&client).await;
        let mut run = run.borrow_mut();
        if let Ok(seen) = &seen {
            remember(&mut run, seen).map_err(Failed::Stop)?;
        }
        let missing = missing(&run, seen.as_ref().ok());
        if missing.is_empty() {
            return Ok(());
        }
        first_missing.set(missing.first().and_then(|name| name.parse().ok()));
        let what = format!("not ready yet: {}", missing.join(", "));
        step.detail(&what);
        let error = match seen {
            Ok(_) => anyhow!(what),
            // Why nothing is known of the nodes, should that stay so.
            Err(error) => Error::new(error).context(what),
        };
        Err(machines::retry(&*run.provider, error))
    };
    let waited = Schedule::every(INTERVAL, LIMIT).poll(attempt, |_, _| {}).await;
    waited.map_err(|error| {
        let console = first_missing.take().map(|name| run.borrow().provider.console(&name));
        advise(
            given_up(error, "not all nodes became ready"),
            console.unwrap_or_default(),
            "run the same command again to go on waiting",
        )
    })
}

/// All nodes by name.
pub(crate) async fn list(client: &Client) -> kube::Result<BTreeMap<String, Seen>> {
    let nodes = Api::<Node>::all(client.clone())
        .list(&kube::api::ListParams::default())
        .await?;
    Ok(nodes
        .items
        .into_iter()
        .map(|node| (node.metadata.name.clone().unwrap_or_default(), seen(&node)))
        .collect())
}

fn seen(node: &Node) -> Seen {
    let status = node.status.as_ref();
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let info = status.and_then(|status| status.node_info.as_ref());
    Seen {
        ready: conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        version: info.map(|info| info.kubelet_version.clone()).unwrap_or_default(),
    }
}

fn remember(run: &mut Run<'_>, seen: &BTreeMap<String, Seen>) -> Result<()> {
    let before = run.state.members.len();
    let names = seen.keys().filter_map(|name| name.parse().ok());
    run.state.members.extend(names);
    if run.state.members.len() != before {
        run.workspace.save_state(&run.state)?;
    }
    Ok(())
}

fn missing(run: &Run<'_>, seen: Option<&BTreeMap<String, Seen>>) -> Vec<String> {
    let ready = |name: &str| seen.is_some_and(|seen| seen.get(name).is_some_and(|node| node.ready));
    let wanted = run.config.nodes().into_iter().map(|node| node.name.to_string());
    wanted.filter(|name| !ready(name)).collect()
}
