//! Makes the machines of further control planes control planes, one at a time: etcd takes one new member at once.
//!
//! Whether a machine may have that role is for the operator to say, after the machine has proved what it runs. Workers need no such word.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Error, Result, anyhow};
use attestation::Purpose;
use attested_tls::AttestedNode;
use cluster_types::NodeRole;
use digest::Digest;
use grpc_api::grant::api_client::ApiClient;
use grpc_api::grant::{PresentGrantRequest, PresentGrantResponse};
use infrastructure::Machine;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt};
use operator_key::OperatorKey;
use polling::{Failed, Schedule};
use role_grant::RoleGrant;
use terminal::{Progress, Step};
use tonic::transport::Channel;

use crate::advice::{Advise, advise, given_up};
use crate::bootstrapper::{Answer, Caller};
use crate::commands::nodes::is_ready;
use crate::kubeconfig;
use crate::machines::{self, last_words};
use crate::output::shown;
use crate::run::Run;

/// Time limit for one control plane, from its boot until Kubernetes has it. Software emulation needs minutes.
const LIMIT: Duration = Duration::from_secs(1800);
const INTERVAL: Duration = Duration::from_secs(2);
/// One in so many attempts asks the machine itself.
const ATTEMPTS_ALONE: u32 = 30;
/// How long a grant is good. The machine waits for it and uses it at once.
const GRANT_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// kubeadm adds it when everything else of a control plane is done.
const CONTROL_PLANE_LABEL: &str = "node-role.kubernetes.io/control-plane";

/// How far a machine is that is to become a control plane.
enum Stage {
    /// It waits for a grant.
    New(Channel, Box<AttestedNode>),
    /// It has a grant, and joins.
    Joining,
    Member,
}

/// 1. A machine proves that it runs an image of the policy, obeys us and is new, and its identity is stored.
/// 2. It gets a grant for this identity, with which it joins.
/// 3. Kubernetes has it as a control plane, and it is ready.
pub(crate) async fn run(run: &mut Run<'_>, progress: &Progress) -> Result<()> {
    let made = run.infrastructure()?.nodes.iter();
    let waiting = made.filter(|machine| {
        let is_done = run.state.members.contains(&machine.name) && !run.state.granted.contains(&machine.name);
        machine.role == NodeRole::ControlPlane && !is_done
    });
    let waiting: Vec<_> = waiting.cloned().collect();
    for machine in waiting {
        let title = format!("admitting {}", machine.name);
        progress
            .step(&title, async |step| admit(run, &machine, step).await)
            .await?;
    }
    Ok(())
}

async fn admit(run: &mut Run<'_>, machine: &Machine, step: &Step<'_>) -> Result<()> {
    let client = kubeconfig::impatient_client(run.workspace).await?;
    if let Stage::New(channel, node) = find(run, machine, &client, step).await? {
        store_identity(run, machine, &node)?;
        // From now on its disk is kept, because etcd on it may be a member whatever becomes of this program.
        run.state.granted.insert(machine.name.clone());
        run.workspace.save_state(&run.state)?;
        grant(run, machine, channel, &node).await?;
        step.detail(&format!("{} has its role grant", machine.name));
    }
    until_member(run, machine, &client, step).await?;
    run.state.members.insert(machine.name.clone());
    run.state.granted.remove(&machine.name);
    Ok(run.workspace.save_state(&run.state)?)
}

/// Tries until the machine answers, or Kubernetes has it.
async fn find(run: &Run<'_>, machine: &Machine, client: &Client, step: &Step<'_>) -> Result<Stage> {
    let caller = Caller::new(&*run.provider, run.variants, &run.policy()?)?;
    let attempt = || async {
        if is_member(client, machine).await {
            return Ok(Stage::Member);
        }
        match caller.call(machine, Purpose::Grant).await {
            Ok(Answer::New(channel, node)) => Ok(Stage::New(channel, node)),
            Ok(Answer::Member) => Ok(Stage::Joining),
            Err(Failed::Retry(error)) => Err(retry(run, machine, error)),
            Err(stopped) => Err(stopped),
        }
    };
    poll(run, machine, step, attempt).await
}

/// The machine is left alone most of the time: proving something to us slows it down. If it was reset, it waits for another grant, or for the
/// key of its disk, which the others may not be able to give without it.
async fn until_member(run: &Run<'_>, machine: &Machine, client: &Client, step: &Step<'_>) -> Result<()> {
    let caller = Caller::new(&*run.provider, run.variants, &run.policy()?)?;
    let attempts = AtomicU32::new(0);
    let attempt = || async {
        if is_member(client, machine).await {
            return Ok(());
        }
        if attempts.fetch_add(1, Ordering::Relaxed) % ATTEMPTS_ALONE == ATTEMPTS_ALONE - 1 {
            for purpose in [Purpose::Grant, Purpose::Recover] {
                if let Ok(Answer::New(..)) = caller.call(machine, purpose).await {
                    let error = anyhow!("{} restarted while it joined", machine.name);
                    return Err(Failed::Stop(error));
                }
            }
        }
        let error = anyhow!("{} has not joined yet", machine.name);
        Err(retry(run, machine, error))
    };
    poll(run, machine, step, attempt).await
}

async fn poll<T, F>(run: &Run<'_>, machine: &Machine, step: &Step<'_>, attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, Failed<Error>>>,
{
    let name = &machine.name;
    let show = |_: &Error, _| {
        if let Some(words) = last_words(&*run.provider, machine) {
            step.detail(&words);
        }
    };
    let polled = Schedule::every(INTERVAL, LIMIT).poll(attempt, show).await;
    polled.map_err(|error| {
        let error = given_up(error, &format!("{name} did not become a control plane"));
        let next = format!(
            "read the node's console above, then run the same command again; if the node says that it was interrupted while joining, run \
             `constellation node remove {name} --lost` before"
        );
        advise(error, run.provider.console(name), next)
    })
}

/// While its machine runs. Others do not matter here.
fn retry(run: &Run<'_>, machine: &Machine, error: Error) -> Failed<Error> {
    match machines::check_running_of(&*run.provider, |other| other.name == machine.name) {
        Ok(()) => Failed::Retry(error),
        Err(stopped) => Failed::Stop(stopped),
    }
}

/// While the API server does not answer, nobody is.
async fn is_member(client: &Client, machine: &Machine) -> bool {
    let node = Api::<Node>::all(client.clone()).get_opt(machine.name.as_str()).await;
    let node = node.ok().flatten();
    node.is_some_and(|node| is_ready(&node) && node.labels().contains_key(CONTROL_PLANE_LABEL))
}

/// Before the grant is presented: whoever answers for this node from now on must be this machine.
fn store_identity(run: &mut Run<'_>, machine: &Machine, node: &AttestedNode) -> Result<()> {
    let actual = Digest::new(*node.identity().as_bytes());
    match run.state.identities.get(&machine.name) {
        Some(expected) if *expected != actual => {
            let name = &machine.name;
            let error = anyhow!("{name} has machine {actual}, expected {expected}: it gets no role grant");
            Err(error).advise("someone has put another machine in the place of this one")
        }
        Some(_) => Ok(()),
        None => {
            run.state.identities.insert(machine.name.clone(), actual);
            Ok(run.workspace.save_state(&run.state)?)
        }
    }
}

async fn grant(run: &Run<'_>, machine: &Machine, channel: Channel, node: &AttestedNode) -> Result<()> {
    let policy = run.policy()?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let grant = RoleGrant {
        cluster: policy.cluster,
        machine: node.identity(),
        role: NodeRole::ControlPlane,
        not_after: (since_1970 + GRANT_LIFETIME).as_secs(),
        serial: policy.serial,
    };
    let role_grant = grant.sign(&OperatorKey::of(&run.workspace.master_secret()?));
    let presented = ApiClient::new(channel)
        .present_grant(PresentGrantRequest { role_grant })
        .await;
    let response = presented.map_err(|status| {
        let refusal = shown(status.message());
        anyhow!("{} did not take its role grant: {refusal}", machine.name)
    });
    let PresentGrantResponse {} = response.advise("run the same command again")?.into_inner();
    Ok(())
}
