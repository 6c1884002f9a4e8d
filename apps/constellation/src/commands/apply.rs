//! `apply`: makes the cluster as the configuration says. Each phase begins with finding out what is done already.
//!
//! 1. The machines of control planes are made.
//! 2. The first node is made a cluster, over an attested session.
//! 3. The other machines are made.
//! 4. Our services are applied.
//! 5. All nodes become ready.
//! 6. Every node is verified.

use anyhow::Result;
use atomic_file::Access;
use attestation::Variants;
use cluster_config::{InitProgress, Workspace, names};
use cluster_types::NodeRole;
use error_report::Chain;
use infrastructure::ClusterSpec;
use tokio::task::block_in_place;

use crate::advice::Advise;
use crate::commands::{deploy, init, nodes, verify};
use crate::machines;
use crate::output::{confirm, note, print, say};
use crate::progress::{Progress, Step};
use crate::providers::Providers;
use crate::run::{Run, load_components, load_config};

/// Makes the cluster and tells how long it took.
pub(crate) async fn run(
    workspace: &Workspace,
    yes: bool,
    providers: &dyn Providers,
    variants: &dyn Variants,
) -> Result<()> {
    let config = load_config(workspace)?;
    // A mirror may answer late or never; meanwhile other commands can have the workspace.
    let components = load_components(&config).await?;
    let _lock = workspace.lock()?;
    let progress = Progress::start();
    let mut run = Run::prepare(workspace, config, components, providers, variants)?;
    run.ask(yes)?;
    let result = run.phases(&progress).await;
    // How long it took matters less than how it went.
    let timings = progress.timings();
    if let Err(error) = workspace.write_own(&mut run.state, names::TIMINGS, timings.as_bytes(), Access::Everyone) {
        note(&format!("the times of the steps are not kept: {}", Chain(&error)));
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

impl Run<'_> {
    /// Shows what would change and asks, unless it was asked for.
    fn ask(&self, yes: bool) -> Result<()> {
        let plan = self.provider.plan(&machines::spec(&self.config, &self.state))?;
        if plan.is_empty() || yes {
            return Ok(());
        }
        print("These changes are needed:")?;
        for change in &plan.changes {
            print(&format!("  {change}"))?;
        }
        confirm("Do you want to make them?", yes)
    }

    async fn phases(&mut self, progress: &Progress) -> Result<()> {
        let first = "making the machines of control planes";
        progress
            .step(first, async |step| self.make_first_machines(step))
            .await?;
        if self.state.init != InitProgress::Done {
            init::run(self, progress).await?;
        }
        progress
            .step("making the other machines", async |step| {
                self.make_machines(&machines::spec(&self.config, &self.state), step)
            })
            .await?;
        progress
            .step("applying the services", async |step| deploy::run(self, step).await)
            .await?;
        progress
            .step("waiting for all nodes", async |step| nodes::wait(self, step).await)
            .await?;
        progress
            .step("verifying every node", async |step| verify::all(self, step).await)
            .await
    }

    /// A node that was asked to make a cluster and did not finish cannot be asked again: it and all others are made anew.
    /// Workers have nothing to do until there is a cluster, and would only take the processor from its first node.
    fn make_first_machines(&mut self, step: &Step<'_>) -> Result<()> {
        block_in_place(|| {
            if self.state.init == InitProgress::Started && !init::finish_interrupted(self)? {
                step.detail("the last run ended while the first node was set up; starting with fresh machines");
                self.provider.destroy()?;
                self.state.infrastructure = None;
                self.state.init = InitProgress::NotStarted;
            }
            // Stored before anything depends on the secret and the salt in it.
            anyhow::Ok(self.workspace.save_state(&self.state)?)
        })?;
        let mut spec = machines::spec(&self.config, &self.state);
        let workers = spec.nodes.iter().filter(|node| node.role == NodeRole::Worker);
        spec.later = workers.map(|node| node.name.clone()).collect();
        self.make_machines(&spec, step)
    }

    fn make_machines(&mut self, spec: &ClusterSpec, step: &Step<'_>) -> Result<()> {
        block_in_place(|| {
            let made = self.provider.create(spec, &|detail| step.detail(detail));
            self.state.infrastructure = Some(made.next("correct this, then run the same command again")?);
            Ok(self.workspace.save_state(&self.state)?)
        })
    }
}
