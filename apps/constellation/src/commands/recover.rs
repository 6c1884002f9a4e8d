//! `recover`: opens the state disks of control planes that restarted while no other one could. `apply` does it too.
//!
//! What a node is sent opens its own disk alone. The master secret stays here.

use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use attestation::{Purpose, Variants};
use attested_tls::AttestedNode;
use cluster_config::{ClusterState, InitProgress, Workspace};
use cluster_policy::BelievedPolicy;
use cluster_types::{DiskUuid, NodeRole};
use digest::Digest;
use grpc_api::recover::api_client::ApiClient;
use grpc_api::recover::{DescribeRequest, DescribeResponse, RecoverRequest, RecoverResponse};
use http::Request;
use infrastructure::{Machine, Provider};
use key_derivation::{DiskOwner, MasterSecret};
use kube::Client;
use operator_key::{OperatorKey, SignatureDomain};
use polling::{Failed, Schedule};
use terminal::{Progress, Step};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::advice::{Advise, advise, given_up};
use crate::bootstrapper::{Answer, Caller};
use crate::machines::{check_running_of, last_words};
use crate::output::{say, shown};
use crate::providers::Providers;
use crate::run::{existing_state, id_of_cluster, newest_policy};
use crate::{kubeconfig, trust};

/// Time limit until a control plane answers, from power-on or from the moment when its disk was opened. Software emulation needs minutes.
const REACH_LIMIT: Duration = Duration::from_secs(1800);
const INTERVAL: Duration = Duration::from_secs(2);
/// An API server that does not answer within this time is down.
const API_LIMIT: Duration = Duration::from_secs(10);
/// For a node to say which disk it has, open it and mount it.
const OPEN_LIMIT: Duration = Duration::from_secs(300);
/// A network that lets nothing through, or a node that fails each time, must not keep this going.
const MOST_RECOVERIES: usize = 5;

const NOT_THAT_MEMBER: &str = "read the reason above and the node's console. If the policy is refused, restore the latest \
                               constellation-state.yaml; if the key does not open the disk, it is another disk. A disk that is lost takes the data \
                               of the cluster with it: then end the cluster with `constellation terminate`";

/// The operator of a cluster that was created, with what opens the disks of its control planes.
pub(crate) struct Operator<'a> {
    state: &'a ClusterState,
    provider: &'a dyn Provider,
    client: Client,
    secret: MasterSecret,
    policy: BelievedPolicy,
    caller: Caller<'a>,
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

/// Waits until a control plane answers, and changes nothing here.
pub(crate) async fn run(workspace: &Workspace, providers: &dyn Providers, variants: &dyn Variants) -> Result<()> {
    let state = existing_state(workspace)?;
    if state.init != InitProgress::Done {
        let error = anyhow!("there is no cluster to recover: creating it did not finish");
        return Err(error).advise("run `constellation apply`");
    }
    let provider = providers.existing(workspace)?;
    let operator = Operator::of(workspace, &state, &*provider, variants).await?;
    operator.reach_control_plane(&Progress::start()).await?;
    say("The control plane answers. Workers come back by themselves; `constellation status` shows them.");
    Ok(())
}

impl<'a> Operator<'a> {
    /// The policy must be for the cluster that the master secret gives: the same operator may have had others, with other images.
    pub(crate) async fn of(
        workspace: &Workspace,
        state: &'a ClusterState,
        provider: &'a dyn Provider,
        variants: &dyn Variants,
    ) -> Result<Self> {
        let secret = workspace.master_secret()?;
        let policy = newest_policy(state, &OperatorKey::of(&secret).public())?;
        policy
            .must_be_for(id_of_cluster(state, &secret)?)
            .advise("restore constellation-state.yaml of this cluster from a backup")?;
        Ok(Self {
            client: kubeconfig::impatient_client(workspace).await?,
            caller: Caller::new(provider, variants, &policy)?,
            state,
            provider,
            secret,
            policy,
        })
    }

    /// Waits for the API server. A control plane that waits for its key meanwhile gets it:
    ///
    /// 1. It proves that it runs an image of the policy, obeys us and has opened no disk in this boot.
    /// 2. It must be the machine that the node had before. It says which disk it has.
    /// 3. The user learns what the Evidence is worth.
    /// 4. The key of this disk and this machine is derived and sent. We sign for the session, because the node believes nobody else.
    pub(crate) async fn reach_control_plane(&self, progress: &Progress) -> Result<()> {
        let mut recovered = 0;
        loop {
            let reached = progress
                .step("reaching the control plane", async |step| self.reach(step).await)
                .await?;
            let Reached::Waiting(node) = reached else {
                return Ok(());
            };
            if recovered == MOST_RECOVERIES {
                let name = &node.machine.name;
                let error = anyhow!(
                    "{name} waits for its key once more, after control planes were recovered {recovered} times"
                );
                return Err(error)
                    .advise("read the node's console (`constellation status`), then run the same command again");
            }
            trust::show(trust::warning(self.caller.trust()), progress);
            let title = format!("recovering {}", node.machine.name);
            progress
                .step(&title, async |step| self.recover(node, step).await)
                .await?;
            recovered += 1;
            sleep(INTERVAL).await;
        }
    }

    /// Tries until the API server answers, or a control plane that waits for its key.
    async fn reach(&self, step: &Step<'_>) -> Result<Reached> {
        let control_planes = self.control_planes()?;
        let attempt = || async {
            for machine in &control_planes {
                if let Some((channel, node)) = self.new_node(machine, Purpose::Recover).await? {
                    let machine = (*machine).clone();
                    return Ok(Reached::Waiting(WaitingNode { machine, node, channel }));
                }
            }
            let Err(unreachable) = api_server_answers(&self.client).await else {
                return Ok(Reached::ApiServer);
            };
            for machine in &control_planes {
                if self.new_node(machine, Purpose::Init).await?.is_some() {
                    return Err(Failed::Stop(has_new_disk(machine)));
                }
            }
            let words = control_planes
                .iter()
                .find_map(|machine| last_words(self.provider, machine));
            step.detail(&words.unwrap_or_else(|| unreachable.to_string()));
            // A worker that has stopped does not matter here.
            let running = check_running_of(self.provider, |machine| machine.role == NodeRole::ControlPlane);
            Err(match running {
                Ok(()) => Failed::Retry(unreachable),
                Err(stopped) => Failed::Stop(stopped),
            })
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

    /// A control plane that has measured no membership, if it waits for this. Others boot, or are members.
    async fn new_node(
        &self,
        machine: &Machine,
        purpose: Purpose,
    ) -> Result<Option<(Channel, Box<AttestedNode>)>, Failed<Error>> {
        match self.caller.call(machine, purpose).await {
            Ok(Answer::New(channel, node)) => Ok(Some((channel, node))),
            Ok(Answer::Member) | Err(Failed::Retry(_)) => Ok(None),
            Err(stopped) => Err(stopped),
        }
    }

    async fn recover(&self, waiting: WaitingNode, step: &Step<'_>) -> Result<()> {
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
        let opened = async {
            let mut client = ApiClient::new(channel);
            let DescribeResponse { disk_uuid } = client.describe(DescribeRequest {}).await?.into_inner();
            let disk: DiskUuid = disk_uuid
                .parse()
                .map_err(|_| Status::failed_precondition("what the node says about its disk is malformed"))?;
            step.detail(&format!("opening state disk {disk}"));
            let RecoverResponse {} = client.recover(self.keys(disk, &node)).await?.into_inner();
            Ok::<_, Status>(())
        };
        match timeout(OPEN_LIMIT, opened).await {
            Ok(Ok(())) => Ok(()),
            // Whether it got the key shows when it is asked again.
            Ok(Err(status)) if is_broken(&status) => Ok(()),
            Ok(Err(status)) => {
                let error = anyhow!("{name} cannot come back: {}", shown(status.message()));
                Err(advise(error, self.provider.console(name), NOT_THAT_MEMBER))
            }
            Err(_) => {
                let error = anyhow!("{name} did not open its state disk within {} s", OPEN_LIMIT.as_secs());
                Err(advise(error, self.provider.console(name), "run the same command again"))
            }
        }
    }

    /// What opens this disk of this machine, for the session in which it attested.
    fn keys(&self, disk: DiskUuid, node: &AttestedNode) -> RecoverRequest {
        let kek = self.secret.kek();
        let binding = node.presented().binding();
        let owner = DiskOwner {
            cluster: self.policy.cluster,
            machine: *node.identity().as_bytes(),
            role: NodeRole::ControlPlane,
        };
        RecoverRequest {
            operator_signature: OperatorKey::of(&self.secret).sign(SignatureDomain::Recovery, binding.as_bytes()),
            state_disk_key: kek.state_disk_key(disk, &owner).expose().to_vec(),
            measurement_secret: kek.measurement_secret().expose().to_vec(),
            cluster_policy: self.policy.as_bytes().to_vec(),
            is_control_plane: true,
        }
    }
}

/// It proved that it waits to become the first node of a cluster.
fn has_new_disk(machine: &Machine) -> Error {
    let error = anyhow!(
        "{} has a new state disk: somebody has put it in the place of the old one",
        machine.name
    );
    let next = "give the machine its old disk; if it is lost, so is the data of the cluster: end it with `constellation terminate`";
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
