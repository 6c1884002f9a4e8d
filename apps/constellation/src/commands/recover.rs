//! `recover`: opens the state disks of control planes that restarted while no other one could. `apply` does it too.
//!
//! What a node is sent opens its own disk alone. The master secret stays here.

use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use attestation::{ExpectedMembership, ExpectedStatements, Purpose, Variants, Verifiers};
use attested_tls::AttestedNode;
use cluster_config::{ClusterState, InitProgress, Workspace};
use cluster_policy::BelievedPolicy;
use cluster_types::{DiskUuid, NodeRole};
use digest::Digest;
use grpc_api::recover::api_client::ApiClient;
use grpc_api::recover::{DescribeRequest, DescribeResponse, RecoverRequest, RecoverResponse};
use http::Request;
use infrastructure::{Machine, Provider};
use key_derivation::MasterSecret;
use kube::Client;
use operator_key::{OperatorKey, SignatureDomain};
use polling::{Failed, Schedule};
use terminal::{Progress, Step};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::advice::{Advise, advise, given_up};
use crate::bootstrapper::Caller;
use crate::machines::last_words;
use crate::output::{say, shown};
use crate::providers::Providers;
use crate::run::{existing_state, newest_policy, operator_of};
use crate::{kubeconfig, machines, trust};

/// Time limit until a control plane answers, from power-on or from the moment when its disk was opened. Software emulation needs minutes.
const REACH_LIMIT: Duration = Duration::from_secs(1800);
const INTERVAL: Duration = Duration::from_secs(2);
/// An API server that does not answer within this time is down.
const API_LIMIT: Duration = Duration::from_secs(10);
/// For a node to open its disk and mount it.
const OPEN_LIMIT: Duration = Duration::from_secs(300);

const NOT_THAT_MEMBER: &str = "read the reason above and the node's console; if its state disk is lost, so is the data of the cluster: \
                               terminate it with `constellation terminate`";

/// A cluster that was created, and what its operator has of it.
pub(crate) struct Recovery<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) state: &'a ClusterState,
    pub(crate) provider: &'a dyn Provider,
    pub(crate) variants: &'a dyn Variants,
}

/// Who answered first.
enum Reached {
    ApiServer,
    /// A control plane whose state disk is closed.
    Waiting(WaitingNode),
}

struct WaitingNode {
    machine: Machine,
    node: Box<AttestedNode>,
    channel: Channel,
}

/// What opens a disk.
struct Keys {
    secret: MasterSecret,
    operator: OperatorKey,
    policy: BelievedPolicy,
}

/// Waits until a control plane answers, and changes nothing here.
pub(crate) async fn run(workspace: &Workspace, providers: &dyn Providers, variants: &dyn Variants) -> Result<()> {
    let state = existing_state(workspace)?;
    if state.init != InitProgress::Done {
        let error = anyhow!("there is no cluster to recover: creating it did not finish");
        return Err(error).advise("run `constellation apply`");
    }
    let provider = providers.existing(workspace)?;
    machines::check_running(&*provider)
        .advise("start the machines with `constellation apply`, which recovers the cluster too")?;
    let recovery = Recovery {
        workspace,
        state: &state,
        provider: &*provider,
        variants,
    };
    recovery.run(&Progress::start()).await?;
    say("The control plane answers. Workers come back by themselves; `constellation status` shows them.");
    Ok(())
}

impl Recovery<'_> {
    /// Waits for the API server. A control plane that waits for its key meanwhile gets it:
    ///
    /// 1. It proves that it runs an image of the policy, obeys us and has opened no disk in this boot.
    /// 2. It must be the machine that the node had before. It says which disk it has.
    /// 3. The user learns what the Evidence is worth.
    /// 4. The key of this disk and this machine is derived and sent. We sign for the session, because the node believes nobody else.
    pub(crate) async fn run(&self, progress: &Progress) -> Result<()> {
        let secret = self.workspace.master_secret()?;
        let operator = OperatorKey::of(&secret);
        let keys = Keys {
            policy: newest_policy(self.state, &operator.public())?,
            operator,
            secret,
        };
        let client = kubeconfig::impatient_client(self.workspace).await?;
        loop {
            let reached = progress
                .step("reaching the control plane", async |step| {
                    self.reach(&client, &keys, step).await
                })
                .await?;
            let Reached::Waiting(node) = reached else {
                return Ok(());
            };
            trust::show(trust::warning(self.verifiers(&keys)?.trust()), progress);
            let title = format!("recovering {}", node.machine.name);
            progress
                .step(&title, async |step| self.recover(node, &keys, step).await)
                .await?;
        }
    }

    fn verifiers(&self, keys: &Keys) -> Result<Verifiers> {
        let statements = ExpectedStatements {
            operator: operator_of(&keys.secret),
            membership: ExpectedMembership::New,
        };
        Ok(Verifiers::one(keys.policy.verifier(self.variants, &statements)?))
    }

    /// Tries until the API server answers, or a control plane that waits for its key.
    async fn reach(&self, client: &Client, keys: &Keys, step: &Step<'_>) -> Result<Reached> {
        let caller = Caller::new(self.provider, self.verifiers(keys)?);
        let control_planes = self.control_planes()?;
        let attempt = || async {
            let Err(unreachable) = api_server_answers(client).await else {
                return Ok(Reached::ApiServer);
            };
            for machine in &control_planes {
                if let Some((channel, node)) = unless_booting(caller.call(machine, Purpose::Recover).await)? {
                    let (machine, node) = ((*machine).clone(), Box::new(node));
                    return Ok(Reached::Waiting(WaitingNode { machine, node, channel }));
                }
                if unless_booting(caller.call(machine, Purpose::Init).await)?.is_some() {
                    return Err(Failed::Stop(has_new_disk(machine)));
                }
            }
            let words = control_planes
                .iter()
                .find_map(|machine| last_words(self.provider, machine));
            step.detail(&words.unwrap_or_else(|| unreachable.to_string()));
            Err(machines::retry(self.provider, unreachable))
        };
        let reached = Schedule::every(INTERVAL, REACH_LIMIT).poll(attempt, |_, _| {}).await;
        reached.map_err(|error| {
            let consoles = control_planes
                .iter()
                .flat_map(|machine| self.provider.console(&machine.name));
            let error = given_up(error, "no control plane answered");
            let next = "read the console above, then run the same command again to keep waiting";
            advise(error, consoles.collect(), next)
        })
    }

    fn control_planes(&self) -> Result<Vec<&Machine>> {
        let infrastructure = self.state.infrastructure.as_ref();
        let machines = &infrastructure.context("the machines have not been created")?.nodes;
        let control_planes = machines.iter().filter(|machine| machine.role == NodeRole::ControlPlane);
        Ok(control_planes.collect())
    }

    async fn recover(&self, waiting: WaitingNode, keys: &Keys, step: &Step<'_>) -> Result<()> {
        let WaitingNode { machine, node, channel } = waiting;
        let name = &machine.name;
        let (actual, expected) = (
            Digest::new(*node.identity().as_bytes()),
            self.state.identities.get(name),
        );
        if expected != Some(&actual) {
            let expected = expected.map_or_else(|| "none that is known".to_owned(), ToString::to_string);
            let error = anyhow!("{name} has machine {actual}, expected {expected}: it gets no key");
            return Err(error).advise(
                "if constellation-state.yaml is of this cluster, someone has put another machine in the place of this one",
            );
        }
        let mut client = ApiClient::new(channel);
        let described = client.describe(DescribeRequest {}).await;
        let DescribeResponse { disk_uuid } = described
            .context("the node does not say which disk it has")?
            .into_inner();
        let disk: DiskUuid = disk_uuid.parse().context("the node says nonsense about its disk")?;
        step.detail(&format!("opening state disk {disk}"));
        let request = keys.open(disk, &node);
        match timeout(OPEN_LIMIT, client.recover(request)).await {
            Ok(Ok(response)) => {
                let RecoverResponse {} = response.into_inner();
                Ok(())
            }
            // It may have got the key. If not, it answers again.
            Ok(Err(status)) if is_broken(&status) => Ok(()),
            Ok(Err(status)) => {
                let error = anyhow!("{name} cannot come back: {}", shown(status.message()));
                Err(advise(error, self.provider.console(name), NOT_THAT_MEMBER))
            }
            Err(_) => Err(anyhow!(
                "{name} did not open its state disk within {} s",
                OPEN_LIMIT.as_secs()
            ))
            .advise("run the same command again"),
        }
    }
}

impl Keys {
    /// What opens this disk of this machine, for the session in which it attested.
    fn open(&self, disk: DiskUuid, node: &AttestedNode) -> RecoverRequest {
        let kek = self.secret.kek();
        let binding = node.presented().binding();
        RecoverRequest {
            operator_signature: self.operator.sign(SignatureDomain::Recovery, binding.as_bytes()),
            state_disk_key: kek.state_disk_key(disk, node.identity().as_bytes()).expose().to_vec(),
            measurement_secret: kek.measurement_secret().expose().to_vec(),
            cluster_policy: self.policy.as_bytes().to_vec(),
            is_control_plane: true,
        }
    }
}

/// Whoever boots answers later.
fn unless_booting<T>(called: Result<T, Failed<Error>>) -> Result<Option<T>, Failed<Error>> {
    match called {
        Ok(session) => Ok(Some(session)),
        Err(Failed::Retry(_)) => Ok(None),
        Err(stopped) => Err(stopped),
    }
}

/// It proved that it waits to become the first node of a cluster.
fn has_new_disk(machine: &Machine) -> Error {
    let error = anyhow!(
        "{} has a new state disk: somebody has put it in the place of the old one",
        machine.name
    );
    let next = "give the machine its old disk; if it is lost, so is the data of the cluster: terminate it with `constellation terminate`";
    advise(error, Vec::new(), next)
}

/// The connection ended, or another recovery was faster.
fn is_broken(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
}

/// A refusal is an answer too: whoever needs more will be told.
async fn api_server_answers(client: &Client) -> Result<()> {
    let request = Request::get("/readyz").body(Vec::new());
    let request = request.expect("a constant request is well-formed");
    let Ok(answered) = timeout(API_LIMIT, client.request_text(request)).await else {
        bail!("the API server did not answer within {} s", API_LIMIT.as_secs());
    };
    match answered {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code < 500 => Ok(()),
        Err(error) => Err(anyhow!(kubeconfig::in_words(&error))),
    }
}
