//! `verify`: every node proves what it runs and that it is part of this cluster.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use attestation::{
    AttestationResult, Claim, Comparison, ExpectedMembership, ExpectedStatements, Membership, Outcome, Purpose,
    Variants,
};
use attested_tls::{Endpoint, HandshakeError, PeerPolicy, channel};
use cluster_config::Workspace;
use cluster_types::{ClusterId, NodeRole, OperatorPublicKey};
use error_report::Chain;
use futures_util::{StreamExt, stream};
use infrastructure::Machine;
use measurements::ReferenceValues;
use polling::{Failed, PollError, Schedule};
use serde::Serialize;
use terminal::Step;

use crate::advice::{Advise, advise};
use crate::arguments::{Format, VerifyArguments};
use crate::machines::{self, ANSWER_LIMIT};
use crate::output::{print, shown};
use crate::run::{Run, accepted, reference_values};
use crate::trust::warning;

/// The verdict on a node that did not answer.
const UNREACHABLE: &str = "unreachable";
/// How long it may take until the nodes of a new cluster can be verified. Starting its pods keeps a slow node busy for minutes after
/// it is ready.
const REACH_LIMIT: Duration = Duration::from_secs(900);
const INTERVAL: Duration = Duration::from_secs(2);
/// How many nodes are verified at once.
const CONCURRENT_SESSIONS: usize = 16;

/// All verdicts, in the form for programs.
#[derive(Serialize)]
struct Report {
    /// Printed before any verdict, so that no one mistakes a local cluster for a protected one.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
    protects_from_host: bool,
    cluster_id: ClusterId,
    verdict: &'static str,
    nodes: Vec<Verdict>,
}

/// What one node proved.
#[derive(Serialize)]
struct Verdict {
    name: String,
    role: String,
    endpoint: String,
    verdict: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    claims: Vec<ShownClaim>,
}

/// One thing that a node proved. What is not appraised has neither an expected value nor a match.
#[derive(Serialize)]
struct ShownClaim {
    name: String,
    actual: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    matches: Option<bool>,
}

/// The command. Its exit code is 0 only if every node is affirming.
pub(crate) async fn run(
    workspace: &Workspace,
    arguments: &VerifyArguments,
    variants: &dyn Variants,
) -> Result<ExitCode> {
    let config = workspace.config()?;
    let state = workspace
        .state()?
        .context("there is no constellation-state.yaml in this workspace")
        .advise(
            "if there is a cluster, restore the file from a backup; otherwise create one with `constellation mini up` or \
             `constellation apply`",
        )?;
    let cluster = arguments
        .cluster_id
        .or(state.cluster_id)
        .context("the cluster has no id yet")
        .advise("finish creating it with `constellation apply`, or pass --cluster-id")?;
    let operator = state.made_of.as_ref().and_then(|made_of| made_of.operator_key);
    let operator = operator
        .context("constellation-state.yaml does not say which operator the nodes obey")
        .advise("finish creating the cluster with `constellation apply`")?;
    let reference_values = reference_values(&config, &state, variants)?;
    let nodes = state.infrastructure.map(|made| made.nodes).unwrap_or_default();
    let report = report(&nodes, variants, &reference_values, Members { cluster, operator }).await?;
    match arguments.output {
        Format::Text => print(&text(&report))?,
        Format::Json => print(&serde_json::to_string_pretty(&report)?)?,
    }
    Ok(if report.is_affirming() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The last phase of `apply`. A node is ready before its verification service listens, so a node that cannot be reached is
/// asked again for a while. A node with a wrong answer is not. Returns the warning that goes with the verdicts.
pub(crate) async fn all(run: &Run<'_>, step: &Step<'_>) -> Result<Option<&'static str>> {
    let members = Members {
        cluster: run.state.cluster_id.context("the cluster has no id")?,
        operator: run.made_of.operator_key.context("the cluster has no operator")?,
    };
    let nodes = &run.infrastructure()?.nodes;
    // A report without a node that did not answer is final. Any other is the best there is when time is up.
    let attempt = || async {
        let report = report(nodes, run.variants, &run.reference_values, members).await;
        let report = report.map_err(|error| Failed::Stop(Err(error)))?;
        if report.nodes.iter().all(|node| node.verdict != UNREACHABLE) {
            return Ok(report);
        }
        machines::check_running(&*run.provider).map_err(|stopped| Failed::Stop(Err(stopped)))?;
        Err(Failed::Retry(Ok(report)))
    };
    let polled = Schedule::every(INTERVAL, REACH_LIMIT).poll(attempt, |_, _| {}).await;
    let report = match polled.map_err(PollError::into_last) {
        Ok(report) => report,
        Err(Some(last)) => last?,
        Err(None) => bail!("no node answered within {} s", REACH_LIMIT.as_secs()),
    };
    if report.is_affirming() {
        step.detail(&format!("all {} nodes are affirming", report.nodes.len()));
        return Ok(report.warning);
    }
    let failed = report
        .nodes
        .iter()
        .filter_map(|node| Some((node, node.reason.as_deref()?)));
    let lines = failed.map(|(node, reason)| format!("{}: {}: {reason}", node.name, node.verdict));
    let next = "run `constellation verify` for details";
    Err(advise(
        anyhow!("some nodes could not be verified"),
        lines.collect(),
        next,
    ))
}

/// What all nodes must have said about themselves, apart from their roles.
#[derive(Clone, Copy)]
struct Members {
    cluster: ClusterId,
    operator: OperatorPublicKey,
}

impl Members {
    fn with_role(self, role: NodeRole) -> ExpectedStatements {
        let Self { cluster, operator } = self;
        ExpectedStatements {
            operator,
            membership: ExpectedMembership::Of(Membership::new(cluster, role)),
        }
    }
}

async fn report(
    nodes: &[Machine],
    variants: &dyn Variants,
    image: &ReferenceValues,
    members: Members,
) -> Result<Report> {
    let with_role = |role| accepted(variants, image, members.with_role(role));
    let (control_planes, workers) = (with_role(NodeRole::ControlPlane)?, with_role(NodeRole::Worker)?);
    let trust = control_planes.trust();
    let endpoint = |accepted| Endpoint::new(None, PeerPolicy::Attested(Arc::new(accepted)));
    let (control_planes, workers) = (endpoint(control_planes), endpoint(workers));
    let endpoint_for = |node: &Machine| match node.role {
        NodeRole::ControlPlane => &control_planes,
        NodeRole::Worker => &workers,
    };
    // Side by side, because most of the time is spent waiting for the nodes' TPMs.
    let verdicts = nodes.iter().map(|node| verify(endpoint_for(node), node));
    let mut verdicts: Vec<Verdict> = stream::iter(verdicts).buffered(CONCURRENT_SESSIONS).collect().await;
    refuse_doubles(&mut verdicts);
    let affirming = !verdicts.is_empty() && verdicts.iter().all(|node| node.reason.is_none());
    Ok(Report {
        warning: warning(trust),
        protects_from_host: trust.protects_from_host(),
        cluster_id: members.cluster,
        verdict: if affirming { "affirming" } else { "not affirming" },
        nodes: verdicts,
    })
}

/// Every node must be a separate machine; otherwise one good node could answer for a bad one.
fn refuse_doubles(verdicts: &mut [Verdict]) {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for verdict in verdicts {
        let Some(identity) = verdict.identity.clone() else {
            continue;
        };
        if let Some(first) = seen.get(&identity) {
            let reason = format!("the machine that answered has the attested identity of {first}");
            verdict.fail("contraindicated", reason);
        } else {
            seen.insert(identity, verdict.name.clone());
        }
    }
}

async fn verify(endpoint: &Endpoint, node: &Machine) -> Verdict {
    let address = format!("{}:{}", node.host, node.ports.verify);
    let session = tokio::time::timeout(ANSWER_LIMIT, channel(endpoint, Purpose::Verify, &address));
    let outcome = session.await.unwrap_or(Err(HandshakeError::TimedOut(ANSWER_LIMIT)));
    let mut verdict = Verdict {
        name: node.name.to_string(),
        role: node.role.to_string(),
        endpoint: address,
        verdict: String::new(),
        identity: None,
        variant: None,
        trust: None,
        reason: None,
        claims: Vec::new(),
    };
    match outcome {
        Ok((_, Some(proven))) => verdict.fill(proven.result()),
        Ok((_, None)) => verdict.fail("unproven", "the node did not attest".to_owned()),
        Err(HandshakeError::NotAffirmed(refused)) => {
            verdict.fill(&refused.result);
            verdict.fail(&refused.outcome().to_string(), refused.to_string());
        }
        Err(error @ (HandshakeError::Io(_) | HandshakeError::TimedOut(_))) => {
            verdict.fail(UNREACHABLE, Chain(&error).to_string());
        }
        Err(error) => verdict.fail("contraindicated", Chain(&error).to_string()),
    }
    verdict
}

impl Verdict {
    fn fill(&mut self, result: &AttestationResult) {
        self.verdict = result.outcome().to_string();
        self.identity = Some(result.identity().to_string());
        self.variant = Some(result.variant().to_string());
        self.trust = Some(result.trust().to_string());
        self.claims = result.claims().iter().map(ShownClaim::from).collect();
        // A session exists only because the result is affirming. This keeps it so, should that ever change.
        if result.outcome() != Outcome::Affirming {
            self.reason = Some("the verdict is not affirming".to_owned());
        }
    }

    fn fail(&mut self, verdict: &str, reason: String) {
        verdict.clone_into(&mut self.verdict);
        self.reason = Some(shown(&reason));
    }
}

impl Report {
    fn is_affirming(&self) -> bool {
        self.verdict == "affirming"
    }
}

impl From<&Claim> for ShownClaim {
    fn from(claim: &Claim) -> Self {
        let actual = shown(&claim.actual.to_string());
        let (expected, matches) = match &claim.comparison {
            Comparison::NotCompared => (None, None),
            Comparison::AsExpected { .. } => (Some(actual.clone()), Some(true)),
            Comparison::Differs { expected, .. } => (Some(expected.to_string()), Some(false)),
        };
        Self {
            name: shown(&claim.name),
            actual,
            expected,
            matches,
        }
    }
}

/// The verdicts as lines for people.
fn text(report: &Report) -> String {
    let mut lines: Vec<_> = report
        .warning
        .iter()
        .map(|warning| format!("Note: {warning}"))
        .collect();
    lines.push(format!("Cluster {}", report.cluster_id));
    for node in &report.nodes {
        lines.push(format!(
            "\n{} ({}, {}): {}",
            node.name, node.role, node.endpoint, node.verdict
        ));
        if let Some(reason) = &node.reason {
            lines.push(format!("  {reason}"));
        }
        if let (Some(identity), Some(variant)) = (&node.identity, &node.variant) {
            lines.push(format!("  attested identity {identity} ({variant})"));
        }
        for claim in &node.claims {
            lines.extend(match (&claim.expected, claim.matches) {
                (Some(_), Some(true)) => Some(format!("  {:<7} {}  as expected", claim.name, claim.actual)),
                (Some(expected), _) => Some(format!("  {:<7} {}  expected {expected}", claim.name, claim.actual)),
                (None, _) => None,
            });
        }
    }
    let good = report.nodes.iter().filter(|node| node.reason.is_none()).count();
    lines.push(format!("\n{good} of {} nodes are affirming", report.nodes.len()));
    lines.join("\n")
}
