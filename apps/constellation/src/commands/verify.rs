//! `verify`: every node proves what it runs and that it is part of this cluster.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use attestation::{
    AttestationResult, Claim, Comparison, ExpectedMembership, ExpectedStatements, Membership, Outcome, Purpose,
    Variants, Verifiers,
};
use attested_tls::{AttestedChannel, Endpoint, HandshakeError, PeerPolicy, channel};
use cluster_config::{ClusterState, Workspace};
use cluster_policy::BelievedPolicy;
use cluster_types::{ClusterId, NodeName, NodeRole};
use digest::Digest;
use error_report::Chain;
use futures_util::{StreamExt, stream};
use infrastructure::Machine;
use polling::{Failed, PollError, Schedule};
use serde::Serialize;
use terminal::Step;

use crate::advice::{Advise, advise};
use crate::arguments::{Format, VerifyArguments};
use crate::machines::{self, ANSWER_LIMIT};
use crate::output::{print, shown};
use crate::run::{Run, existing_state, newest_policy, operator};
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
    name: NodeName,
    role: String,
    endpoint: String,
    verdict: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<Digest>,
    /// Whether it was compared with the identity of the machine that the node has.
    identity_compared: bool,
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
    let state = existing_state(workspace)?;
    let cluster = arguments
        .cluster_id
        .or(state.cluster_id)
        .context("the cluster has no id yet")
        .advise("finish creating it with `constellation apply`, or pass --cluster-id")?;
    let operator = operator(workspace, &state)?;
    let policy = newest_policy(&state, &operator)?;
    policy.must_be_for(cluster).advise(
        "compare --cluster-id with the id you noted, and restore constellation-state.yaml of this cluster from a backup",
    )?;
    let nodes = state.infrastructure.as_ref().map(|made| &made.nodes[..]);
    let expected = Expected {
        variants,
        policy: &policy,
        cluster,
        identities: &state.identities,
    };
    let report = report(nodes.unwrap_or_default(), expected).await?;
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
/// asked again for a while. A node with a wrong answer is not. The machines that were affirmed are stored: from now on a node has
/// this machine. Returns the warning that goes with the verdicts.
pub(crate) async fn all(run: &mut Run<'_>, step: &Step<'_>) -> Result<Option<&'static str>> {
    let report = report_of_all(run).await?;
    remember(&mut run.state, &report);
    run.workspace.save_state(&run.state)?;
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

/// Of each node that was affirmed, whatever became of the others. A machine that answered for several nodes may be any of them.
fn remember(state: &mut ClusterState, report: &Report) {
    let answers = |identity| {
        report
            .nodes
            .iter()
            .filter(|node| node.identity == Some(identity))
            .count()
    };
    for node in report.nodes.iter().filter(|node| node.reason.is_none()) {
        if let Some(identity) = node.identity.filter(|identity| answers(*identity) == 1) {
            state.identities.insert(node.name.clone(), identity);
        }
    }
}

async fn report_of_all(run: &Run<'_>) -> Result<Report> {
    let policy = run.policy()?;
    let expected = Expected {
        variants: run.variants,
        policy: &policy,
        cluster: run.state.cluster_id.context("the cluster has no id")?,
        identities: &run.state.identities,
    };
    let nodes = &run.infrastructure()?.nodes;
    // A report without a node that did not answer is final. Any other is the best there is when time is up.
    let attempt = || async {
        let report = report(nodes, expected).await;
        let report = report.map_err(|error| Failed::Stop(Err(error)))?;
        if report.nodes.iter().all(|node| node.verdict != UNREACHABLE) {
            return Ok(report);
        }
        machines::check_running(&*run.provider).map_err(|stopped| Failed::Stop(Err(stopped)))?;
        Err(Failed::Retry(Ok(report)))
    };
    let polled = Schedule::every(INTERVAL, REACH_LIMIT).poll(attempt, |_, _| {}).await;
    match polled.map_err(PollError::into_last) {
        Ok(report) => Ok(report),
        Err(Some(last)) => last,
        Err(None) => bail!("no node answered within {} s", REACH_LIMIT.as_secs()),
    }
}

/// What nodes must prove.
#[derive(Clone, Copy)]
struct Expected<'a> {
    variants: &'a dyn Variants,
    /// Which images they may run, and whom they obey: who signed it.
    policy: &'a BelievedPolicy,
    cluster: ClusterId,
    identities: &'a BTreeMap<NodeName, Digest>,
}

impl Expected<'_> {
    fn members(&self, role: NodeRole) -> Result<Verifiers> {
        let statements = ExpectedStatements {
            operator: *self.policy.operator(),
            membership: ExpectedMembership::Of(Membership::new(self.cluster, role)),
        };
        Ok(Verifiers::one(self.policy.verifier(self.variants, &statements)?))
    }
}

async fn report(nodes: &[Machine], expected: Expected<'_>) -> Result<Report> {
    let (control_planes, workers) = (
        expected.members(NodeRole::ControlPlane)?,
        expected.members(NodeRole::Worker)?,
    );
    let trust = control_planes.trust();
    let endpoint = |accepted| Endpoint::new(None, PeerPolicy::Attested(Arc::new(accepted)));
    let (control_planes, workers) = (endpoint(control_planes), endpoint(workers));
    let endpoint_for = |node: &Machine| match node.role {
        NodeRole::ControlPlane => &control_planes,
        NodeRole::Worker => &workers,
    };
    // Side by side, because most of the time is spent waiting for the nodes' TPMs.
    let verdicts = nodes
        .iter()
        .map(|node| verify(endpoint_for(node), node, expected.identities.get(&node.name)));
    let mut verdicts: Vec<Verdict> = stream::iter(verdicts).buffered(CONCURRENT_SESSIONS).collect().await;
    refuse_doubles(&mut verdicts);
    let affirming = !verdicts.is_empty() && verdicts.iter().all(|node| node.reason.is_none());
    Ok(Report {
        warning: warning(trust),
        protects_from_host: trust.protects_from_host(),
        cluster_id: expected.cluster,
        verdict: if affirming { "affirming" } else { "not affirming" },
        nodes: verdicts,
    })
}

/// Every node must be a separate machine; otherwise one good node could answer for a bad one.
fn refuse_doubles(verdicts: &mut [Verdict]) {
    let mut seen: BTreeMap<Digest, NodeName> = BTreeMap::new();
    for verdict in verdicts {
        let Some(identity) = verdict.identity else {
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

async fn verify(endpoint: &Endpoint, node: &Machine, known: Option<&Digest>) -> Verdict {
    let address = format!("{}:{}", node.host, node.ports.verify);
    let session = tokio::time::timeout(ANSWER_LIMIT, channel(endpoint, Purpose::Verify, &address));
    let outcome = session.await.unwrap_or(Err(HandshakeError::TimedOut(ANSWER_LIMIT)));
    let mut verdict = Verdict {
        name: node.name.clone(),
        role: node.role.to_string(),
        endpoint: address,
        verdict: String::new(),
        identity: None,
        identity_compared: known.is_some(),
        variant: None,
        trust: None,
        reason: None,
        claims: Vec::new(),
    };
    match outcome {
        Ok(AttestedChannel { node: Some(proven), .. }) => {
            verdict.fill(proven.result());
            verdict.compare_identity(known);
        }
        Ok(AttestedChannel { node: None, .. }) => verdict.fail("unproven", "the node did not attest".to_owned()),
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
        self.identity = Some(Digest::new(*result.identity().as_bytes()));
        self.variant = Some(result.variant().to_string());
        self.trust = Some(result.trust().to_string());
        self.claims = result.claims().iter().map(ShownClaim::from).collect();
        // A session exists only because the result is affirming. This keeps it so, should that ever change.
        if result.outcome() != Outcome::Affirming {
            self.reason = Some("the verdict is not affirming".to_owned());
        }
    }

    /// An attestation key proves that this is a machine of the cluster; only its identity tells that it is the one with this name.
    fn compare_identity(&mut self, known: Option<&Digest>) {
        if let (Some(actual), Some(known)) = (self.identity, known)
            && actual != *known
        {
            let reason = format!("another machine answers: the node's own has the attested identity {known}");
            self.fail("contraindicated", reason);
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
            let compared = if node.identity_compared {
                ""
            } else {
                ", not known before and not compared"
            };
            lines.push(format!("  attested identity {identity} ({variant}){compared}"));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(node: &str, identity: Option<u8>, reason: Option<&str>) -> Verdict {
        Verdict {
            name: node.parse().unwrap(),
            role: String::new(),
            endpoint: String::new(),
            verdict: String::new(),
            identity: identity.map(|byte| Digest::new([byte; 32])),
            identity_compared: false,
            variant: None,
            trust: None,
            reason: reason.map(str::to_owned),
            claims: Vec::new(),
        }
    }

    #[test]
    fn the_machines_that_were_affirmed_are_remembered_and_no_others() {
        let mut state = ClusterState::new();
        let report = Report {
            warning: None,
            protects_from_host: false,
            cluster_id: ClusterId::new([0; 32]),
            verdict: "not affirming",
            nodes: vec![
                verdict("control-plane-0", Some(1), None),
                verdict("worker-0", Some(2), Some("it is another image")),
                verdict("worker-1", None, Some("it does not answer")),
                verdict("worker-2", Some(3), None),
                verdict("worker-3", Some(3), Some("it answers for worker-2")),
            ],
        };
        remember(&mut state, &report);
        let known: Vec<_> = state.identities.into_iter().collect();
        assert_eq!(known, [("control-plane-0".parse().unwrap(), Digest::new([1; 32]))]);
    }
}
