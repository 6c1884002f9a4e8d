//! `apply`: creates the cluster that the configuration describes. Each phase first finds out what is already done.
//!
//! 1. The master secret is made, unless there is one: machines measure the operator whose it is.
//! 2. The control plane of a cluster that exists is started if it has stopped, and recovered if it restarted. Workers that are not wanted any
//!    more leave. The machines are created. Workers boot and fetch Kubernetes while the first node is set up.
//! 3. The cluster policy is signed, unless the newest one says the same: which images nodes may run, and what they install.
//! 4. The first node becomes a cluster, over an attested session, and deploys our services.
//! 5. The policy is published, for nodes that join.
//! 6. All nodes become ready.
//! 7. Every node is verified.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, anyhow};
use atomic_file::Access;
use attestation::Variants;
use cluster_config::{InitProgress, MadeOf, Workspace, WorkspaceError, names};
use cluster_types::{NodeName, NodeRole};
use error_report::{Chain, explain_denied_in};
use infrastructure::{Change, Infrastructure, MachineStatus, Plan, ProviderError};
use terminal::{Progress, Step};
use tokio::task::block_in_place;
use zeroize::Zeroizing;

use crate::advice::Advise;
use crate::commands::recover::Operator;
use crate::commands::{init, nodes, publish, verify};
use crate::output::{confirm, note, print, say};
use crate::providers::Providers;
use crate::removal::{Removal, can_be_drained, worker};
use crate::run::{Run, load_components, load_config, operator_of, refuse_configured_changes};
use crate::{kubeconfig, machines, trust};

/// Creates the cluster and reports how long it took.
pub(crate) async fn run(
    workspace: &Workspace,
    yes: bool,
    providers: &dyn Providers,
    variants: &dyn Variants,
) -> Result<()> {
    let config = load_config(workspace)?;
    refuse_configured_changes(workspace, &config, providers)?;
    // A mirror may answer late or never. Meanwhile, other commands can use the workspace.
    let components = load_components(&config).await?;
    let _lock = workspace.lock()?;
    let progress = Progress::start();
    let mut run = Run::prepare(workspace, config, components, providers, variants)?;
    run.ask(yes)?;
    let result = run.phases(&progress).await;
    // The timings matter less than the result.
    if let Err(error) = keep_timings(workspace, &progress.timings()) {
        note(&format!("cannot keep the timings of the steps: {}", Chain(&error)));
    }
    result?;
    for line in progress.summary() {
        say(&line);
    }
    let path = workspace.path(names::ADMIN_CONF).display().to_string();
    say(&format!(
        "The cluster is ready. To use it:\n\n  export KUBECONFIG={}\n",
        shlex::try_quote(&path).unwrap_or_default()
    ));
    Ok(())
}

/// In the state as it is stored, so that they store nothing that a phase which failed had half done, and no state if there is none.
fn keep_timings(workspace: &Workspace, timings: &str) -> Result<(), WorkspaceError> {
    let Some(mut state) = workspace.state()? else {
        return Ok(());
    };
    workspace.write_own(&mut state, names::TIMINGS, timings.as_bytes(), Access::Everyone)
}

impl Run<'_> {
    /// Shows what would change and asks for confirmation, unless `yes` is set.
    fn ask(&self, yes: bool) -> Result<()> {
        let plan = self.plan()?;
        if plan.is_empty() || yes {
            return Ok(());
        }
        match self.why_fresh_machines() {
            Some(reason) => print(&format!("These changes are needed, because {reason}:"))?,
            None => print("These changes are needed:")?,
        }
        for change in &plan.changes {
            print(&format!("  {change}"))?;
        }
        confirm("Do you want to apply them?", yes)
    }

    /// What the machines' phases would change. Fresh machines take the place of all that are there, running or not.
    fn plan(&self) -> Result<Plan> {
        let spec = machines::spec(&self.config, &self.state, self.made_of.operator_key);
        if self.why_fresh_machines().is_none() {
            return Ok(self.provider.plan(&spec)?);
        }
        let mut made = self.provider.machines()?;
        made.retain(|machine| machine.status != MachineStatus::NotMade);
        let removed = made.into_iter().map(|machine| Change::Remove(machine.name));
        let created = spec.nodes.into_iter().map(|node| Change::Create(node.name));
        let changes = removed.chain(created).collect();
        Ok(Plan { changes })
    }

    async fn phases(&mut self, progress: &Progress) -> Result<()> {
        self.provide_master_secret(progress)?;
        if self.state.init == InitProgress::Done {
            self.bring_back(progress).await?;
        }
        self.remove_workers(progress).await?;
        progress
            .step("creating the machines", async |step| self.make_machines(step))
            .await?;
        self.sign_policy()?;
        if self.state.init != InitProgress::Done {
            init::run(self, progress).await?;
        }
        progress
            .step("publishing the policy", async |step| publish::run(self, step).await)
            .await?;
        progress
            .step("waiting for all nodes", async |step| nodes::wait(self, step).await)
            .await?;
        let warning = progress
            .step("verifying every node", async |step| verify::all(self, step).await)
            .await?;
        trust::show(warning, progress);
        Ok(())
    }

    /// Before anything of a cluster changes, its control plane must answer: no node can leave without it. Its machine is started if it has
    /// stopped, with the disk that it had.
    async fn bring_back(&mut self, progress: &Progress) -> Result<()> {
        self.refuse_another_policy()?;
        let stopped = self.stopped_control_planes()?;
        let spec = machines::spec(&self.config, &self.state, self.made_of.operator_key);
        let start = |run: &mut Self, detail: &dyn Fn(&str)| {
            let before = run.api_server_port();
            let started = block_in_place(|| run.provider.start(&spec, &stopped, detail));
            run.adopt(started, before)
        };
        if stopped.is_empty() {
            start(self, &|_| {})?;
        } else {
            progress
                .step("starting the control plane", async |step| {
                    start(self, &|detail| step.detail(detail))
                })
                .await?;
        }
        let operator = Operator::of(self.workspace, &self.state, &*self.provider, self.variants).await?;
        operator.reach_control_plane(progress).await
    }

    /// An error if one of them is gone: no other machine can take its place yet, and none is made.
    fn stopped_control_planes(&self) -> Result<Vec<NodeName>> {
        let machines = self.provider.machines()?;
        let known = self.state.infrastructure.iter().flat_map(|known| &known.nodes);
        let known = known.filter(|node| node.role == NodeRole::ControlPlane && self.state.members.contains(&node.name));
        let mut stopped = Vec::new();
        for node in known {
            let machine = machines.iter().find(|machine| machine.name == node.name);
            match machine.map(|machine| &machine.status) {
                Some(MachineStatus::Running | MachineStatus::Unknown) => {}
                Some(MachineStatus::Stopped { .. } | MachineStatus::Paused { .. }) => stopped.push(node.name.clone()),
                Some(MachineStatus::NotMade) | None => {
                    let error = anyhow!(
                        "the machine of {} is gone, and with it the data of the cluster",
                        node.name
                    );
                    return Err(error).advise(
                        "restore its folder from a backup; if there is none, end the cluster with `constellation terminate`",
                    );
                }
            }
        }
        Ok(stopped)
    }

    /// Workers that are not wanted any more leave in order, and what is left of one whose machine is gone. Where there is no cluster yet, the next phase just ends their machines.
    async fn remove_workers(&mut self, progress: &Progress) -> Result<()> {
        if self.state.init != InitProgress::Done {
            return Ok(());
        }
        for name in self.leaving()? {
            let machine = worker(&*self.provider, &self.state, &name)?;
            let lost = !can_be_drained(machine.as_ref());
            let client = kubeconfig::impatient_client(self.workspace).await?;
            let mut removal = Removal {
                workspace: self.workspace,
                state: &mut self.state,
                provider: &*self.provider,
                client: &client,
            };
            progress
                .step(&format!("removing {name}"), async |step| {
                    removal.remove(&name, lost, &|detail| step.detail(detail)).await
                })
                .await?;
        }
        Ok(())
    }

    /// An interrupted removal may have left the Node and the name of a machine that is gone. They would keep a new one from joining.
    fn leaving(&self) -> Result<BTreeSet<NodeName>> {
        let known = self.state.members.iter().chain(self.state.identities.keys());
        let known: BTreeSet<_> = known.cloned().collect();
        let wanted: BTreeSet<_> = self.config.nodes().into_iter().map(|node| node.name).collect();
        let mut leaving: BTreeSet<_> = known.difference(&wanted).cloned().collect();
        for change in self.plan()?.changes {
            match change {
                Change::Remove(name) => drop(leaving.insert(name)),
                Change::Create(name) if known.contains(&name) => drop(leaving.insert(name)),
                _ => {}
            }
        }
        Ok(leaving)
    }

    /// It is made before the machines, which measure the operator's key that it gives, and stored before it is used.
    fn provide_master_secret(&mut self, progress: &Progress) -> Result<()> {
        if self.made_of.operator_key.is_some() {
            return Ok(());
        }
        let (secret, new) = self.workspace.master_secret_or_new()?;
        if new {
            let path = self.workspace.path(names::MASTER_SECRET);
            progress.line(&format!("master secret written to {}: keep it safe", path.display()));
        }
        self.made_of.operator_key = Some(operator_of(&secret));
        Ok(())
    }

    /// A node that began to create a cluster and did not finish cannot begin again, and a machine made from something else than
    /// the configuration wants now is useless: all machines are replaced.
    fn make_machines(&mut self, step: &Step<'_>) -> Result<()> {
        block_in_place(|| {
            if let Some(reason) = self.why_fresh_machines() {
                step.detail(&format!("{reason}; starting again with fresh machines"));
                self.provider.destroy()?;
                self.state.infrastructure = None;
                self.state.identities.clear();
                self.state.init = InitProgress::NotStarted;
            }
            // Stored before anything depends on it, or on the state's secret and salt. What a cluster was made from stays as it is.
            match &mut self.state.made_of {
                Some(recorded) if self.state.init == InitProgress::Done => {
                    recorded.nodes.extend(self.made_of.nodes.clone());
                }
                recorded => *recorded = Some(self.made_of.clone()),
            }
            let spec = machines::spec(&self.config, &self.state, self.made_of.operator_key);
            // A node that comes back under the name of one that goes now has another machine.
            let wanted = |name: &NodeName| spec.nodes.iter().any(|node| node.name == *name);
            self.state.identities.retain(|name, _| wanted(name));
            self.state.members.retain(wanted);
            self.state.boots.retain(|name, _| wanted(name));
            self.workspace.save_state(&self.state)?;
            let before = self.api_server_port();
            let made = self.provider.create(&spec, &|detail| step.detail(detail));
            self.adopt(made, before)
        })
    }

    /// What the provider has made, and where the API server is now.
    fn adopt(&mut self, made: Result<Infrastructure, ProviderError>, api_server_before: Option<u16>) -> Result<()> {
        self.state.infrastructure = Some(made.advise("fix this, then run the same command again")?);
        self.workspace.save_state(&self.state)?;
        self.follow_api_server(api_server_before)
    }

    fn why_fresh_machines(&self) -> Option<&'static str> {
        let differs = |recorded: &MadeOf| !recorded.differences(&self.made_of).is_empty();
        // Also while there is none, before a new one is made: the machines obey the old one's operator.
        let is_foreign = |recorded: &MadeOf| recorded.operator_key != self.made_of.operator_key;
        match self.state.init {
            InitProgress::Started => Some("the last run was interrupted while it set up the first node"),
            InitProgress::NotStarted if self.state.made_of.as_ref().is_some_and(is_foreign) => {
                Some("the machines were made with another master secret")
            }
            InitProgress::NotStarted if self.state.made_of.as_ref().is_some_and(differs) => {
                Some("the configuration has changed since the last run")
            }
            InitProgress::NotStarted | InitProgress::Done => None,
        }
    }

    /// A machine that was started again may have other ports; the kubeconfig names one. One that the user changed is theirs: it stops
    /// this only if it leads where the API server was before.
    fn follow_api_server(&mut self, before: Option<u16>) -> Result<()> {
        if self.state.init != InitProgress::Done || !self.workspace.has(names::ADMIN_CONF)? {
            return Ok(());
        }
        let node = machines::first_node(self.infrastructure()?)?;
        let (host, port) = (&node.host, node.ports.kubernetes);
        let path = self.workspace.path(names::ADMIN_CONF);
        let written = fs::read(&path).map_err(|error| explain_denied_in(self.workspace.folder(), &path, error));
        let written = Zeroizing::new(written.with_context(|| format!("cannot read {}", path.display()))?);
        if kubeconfig::leads_to(&written, port) {
            return Ok(());
        }
        let replaced = match kubeconfig::rewrite(&written, host, port) {
            Ok(rewritten) => {
                let content = (written.as_slice(), rewritten.as_bytes());
                self.workspace
                    .replace_own(&mut self.state, names::ADMIN_CONF, content, Access::Owner)
            }
            // It is not as this program wrote it.
            Err(_) => Err(WorkspaceError::Foreign(path.clone())),
        };
        let (path, address) = (path.display(), kubeconfig::address(host, port));
        match replaced {
            Err(WorkspaceError::Foreign(_)) if before.is_some_and(|before| kubeconfig::leads_to(&written, before)) => {
                let error = anyhow!(
                    "the API server has moved to {address}; {path} was edited by hand, so it was left as it is"
                );
                Err(error).advise(format!(
                    "change `server` in that file to {address}, then run the same command again"
                ))
            }
            Err(WorkspaceError::Foreign(_)) => {
                note(&format!("{path} was edited by hand; the API server is at {address}"));
                Ok(())
            }
            replaced => Ok(replaced?),
        }
    }

    fn api_server_port(&self) -> Option<u16> {
        let first = machines::first_node(self.state.infrastructure.as_ref()?).ok()?;
        Some(first.ports.kubernetes)
    }
}
