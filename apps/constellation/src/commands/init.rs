//! Turns the first node into a cluster, over an attested session.

use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use atomic_file::Access;
use attestation::{AttestedIdentity, Purpose};
use base64::prelude::{BASE64_URL_SAFE, Engine};
use cluster_config::{InitProgress, names};
use cluster_types::ClusterId;
use digest::Digest;
use error_report::Chain;
use grpc_api::components::Component;
use grpc_api::init::api_client::ApiClient;
use grpc_api::init::init_response::Kind;
use grpc_api::init::{
    InitFailureResponse, InitRequest, InitResponse, InitSuccessResponse, LogResponseType, ProgressResponse,
};
use infrastructure::Machine;
use key_derivation::MasterSecret;
use polling::{Failed, Schedule};
use terminal::{Progress, Step};
use tonic::Streaming;
use tonic::transport::Channel;
use zeroize::{Zeroize, Zeroizing};

use crate::advice::{Advise, advise, given_up};
use crate::bootstrapper::{Answer, Caller};
use crate::machines::last_words;
use crate::output::{note, shown};
use crate::run::{Run, expected_id, is_a_cluster};
use crate::{kubeconfig, machines, trust};

/// Time limit from power-on to a bootstrapper that answers. Software emulation needs about half a minute.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// Time limit from the request to a cluster.
const INIT_LIMIT: Duration = Duration::from_secs(1800);
/// How often to look at something that sends no event.
const INTERVAL: Duration = Duration::from_secs(1);
/// The most of the log that is kept, in bytes.
const MAX_LOG_LEN: usize = 64 << 20;

const AFTER_FAILURE: &str = "fix the cause, then run the same command again; it will use new machines and the same \
                             master secret";

/// 1. The user learns what the node's Evidence is worth, while nothing has been sent and the command can still be stopped.
/// 2. The first node boots, and proves what it runs, that it obeys us and that it belongs to no cluster.
/// 3. It is stored that init has begun, before it begins.
/// 4. The node reports until it has a cluster or has failed.
/// 5. The cluster must have the id that our secret gives. Then the id is stored.
pub(crate) async fn run(run: &mut Run<'_>, progress: &Progress) -> Result<()> {
    let secret = run.workspace.master_secret()?;
    let caller = Caller::new(&*run.provider, run.variants, &run.policy()?)?;
    trust::show(trust::warning(caller.trust()), progress);
    let node = machines::first_node(run.infrastructure()?)?;
    let (channel, identity) = progress
        .step("waiting for the first node", async |step| {
            connect(run, &node, &caller, step).await
        })
        .await?;
    progress
        .step("creating the cluster", async |step| {
            begin(run, &node, identity)?;
            match request(run, &secret, &node, channel, step).await? {
                Outcome::Success(success) => finish(run, &secret, &node, success),
                Outcome::Failure(failure) => Err(failed(run, &failure)).advise(AFTER_FAILURE),
            }
        })
        .await
}

/// Tries until the node answers.
async fn connect(
    run: &Run<'_>,
    node: &Machine,
    caller: &Caller<'_>,
    step: &Step<'_>,
) -> Result<(Channel, AttestedIdentity)> {
    step.detail(&format!("{} is booting", node.name));
    let show = |_: &Error, _| {
        if let Some(line) = last_words(&*run.provider, node) {
            step.detail(&line);
        }
    };
    let attempt = || async {
        match caller.call(node, Purpose::Init).await {
            Ok(Answer::New(channel, proven)) => Ok((channel, proven.identity())),
            Ok(Answer::Member) => Err(Failed::Stop(is_member_already(node))),
            Err(Failed::Retry(error)) => Err(machines::retry(&*run.provider, error)),
            Err(stopped) => Err(stopped),
        }
    };
    let called = Schedule::every(INTERVAL, BOOT_LIMIT).poll(attempt, show).await;
    called.map_err(|error| {
        let error = given_up(error, &format!("{} did not answer", node.name));
        let next = "read the node's console above, then run the same command again";
        advise(error, run.provider.console(&node.name), next)
    })
}

fn is_member_already(node: &Machine) -> Error {
    let error = anyhow!(
        "{} is a control plane already, but constellation-state.yaml does not know of a cluster",
        node.name
    );
    advise(error, Vec::new(), "restore constellation-state.yaml from a backup")
}

/// From here on the node may have begun, so its disk cannot be used for another attempt.
fn begin(run: &mut Run<'_>, node: &Machine, identity: AttestedIdentity) -> Result<()> {
    run.workspace.remove_own(&run.state, names::ADMIN_CONF)?;
    if let Err(error) = run.workspace.remove_own(&run.state, names::CLUSTER_LOG) {
        note(&format!(
            "cannot remove {} of the previous attempt: {}",
            names::CLUSTER_LOG,
            Chain(&error)
        ));
    }
    run.state.init = InitProgress::Started;
    run.state.made_of = Some(run.made_of.clone());
    let identity = Digest::new(*identity.as_bytes());
    run.state.identities.insert(node.name.clone(), identity);
    Ok(run.workspace.save_state(&run.state)?)
}

async fn request(
    run: &Run<'_>,
    secret: &MasterSecret,
    node: &Machine,
    channel: Channel,
    step: &Step<'_>,
) -> Result<Outcome> {
    let conversation = async {
        let mut client = ApiClient::new(channel);
        let responses = client.init(init_request(run, secret)?).await;
        let mut responses = responses.context("the node refused to create a cluster")?.into_inner();
        converse(&mut responses, step).await
    };
    tokio::select! {
        result = conversation => {
            if result.is_err() {
                // When a machine stops, the connection breaks first, but its console says more.
                tokio::time::sleep(INTERVAL).await;
                machines::check_running(&*run.provider)?;
            }
            result.advise(AFTER_FAILURE)
        }
        error = until_stopped(run) => Err(error),
        () = tokio::time::sleep(INIT_LIMIT) => {
            let limit = INIT_LIMIT.as_secs();
            Err(anyhow!("{} did not finish creating the cluster within {limit} s", node.name)).advise(AFTER_FAILURE)
        }
    }
}

async fn until_stopped(run: &Run<'_>) -> Error {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Err(error) = machines::check_running(&*run.provider) {
            return error;
        }
    }
}

fn init_request(run: &Run<'_>, secret: &MasterSecret) -> Result<InitRequest> {
    let infrastructure = run.infrastructure()?;
    Ok(InitRequest {
        kms_uri: kms_uri(secret),
        storage_uri: "storage://no-store".to_owned(),
        measurement_salt: run.state.measurement_salt.as_bytes().to_vec(),
        kubernetes_version: run.config.kubernetes_version.to_string(),
        kubernetes_components: run.components.components().iter().map(Component::from).collect(),
        init_secret: run.state.init_secret.expose().to_vec(),
        cluster_name: run.config.name.clone(),
        apiserver_cert_sans: infrastructure.api_server_cert_sans.clone(),
        service_cidr: run.config.service_cidr.to_string(),
        component_mirror: infrastructure.component_mirror.clone(),
        pod_cidr: run.config.pod_cidr.to_string(),
        cluster_policy: run.policy()?.as_bytes().to_vec(),
    })
}

/// The predecessor's form: base64url with padding. It goes into one message and nowhere else.
fn kms_uri(secret: &MasterSecret) -> String {
    let mut key = BASE64_URL_SAFE.encode(secret.expose_key());
    let uri = format!(
        "kms://cluster-kms?key={key}&salt={}",
        BASE64_URL_SAFE.encode(secret.salt())
    );
    key.zeroize();
    uri
}

/// How the node's work ended.
enum Outcome {
    Success(InitSuccessResponse),
    Failure(Failure),
}

/// What a node reports when it could not create a cluster.
struct Failure {
    error: String,
    log: Vec<u8>,
    log_broke_off: bool,
}

/// One success, or one failure and then the node's log.
async fn converse(responses: &mut Streaming<InitResponse>, step: &Step<'_>) -> Result<Outcome> {
    while let Some(response) = responses
        .message()
        .await
        .context("the connection to the node was lost")?
    {
        match response.kind {
            Some(Kind::Progress(ProgressResponse { step: doing })) => step.detail(&doing),
            Some(Kind::InitSuccess(success)) => return Ok(Outcome::Success(success)),
            Some(Kind::InitFailure(InitFailureResponse { error })) => {
                let (log, log_broke_off) = receive_log(responses).await;
                return Ok(Outcome::Failure(Failure {
                    error: shown(&error),
                    log,
                    log_broke_off,
                }));
            }
            Some(Kind::Log(_)) | None => bail!("the node sent an unexpected message"),
        }
    }
    bail!("the node closed the connection without an answer")
}

/// The node's log, and whether it is incomplete.
async fn receive_log(responses: &mut Streaming<InitResponse>) -> (Vec<u8>, bool) {
    let mut log = Vec::new();
    let broke_off = loop {
        match responses.message().await {
            Ok(Some(InitResponse {
                kind: Some(Kind::Log(LogResponseType { log: part })),
            })) => log.extend_from_slice(&part),
            Ok(_) => break false,
            Err(_) => break true,
        }
        if log.len() > MAX_LOG_LEN {
            break true;
        }
    };
    (log, broke_off)
}

/// Stores the node's log and returns where it is.
fn failed(run: &mut Run<'_>, failure: &Failure) -> Error {
    let kept = run
        .workspace
        .write_own(&mut run.state, names::CLUSTER_LOG, &failure.log, Access::Owner);
    let place = match kept {
        Ok(()) if failure.log_broke_off => format!("the beginning of its log is in {}", names::CLUSTER_LOG),
        Ok(()) => format!("its log is in {}", names::CLUSTER_LOG),
        Err(error) => format!("its log cannot be stored: {}", Chain(&error)),
    };
    anyhow!("the node could not create a cluster: {} ({place})", failure.error)
}

/// The kubeconfig is stored first, so that a state that says "done" has one.
fn finish(run: &mut Run<'_>, secret: &MasterSecret, node: &Machine, success: InitSuccessResponse) -> Result<()> {
    let InitSuccessResponse { kubeconfig, cluster_id } = success;
    let kubeconfig = Zeroizing::new(kubeconfig);
    let actual = ClusterId::try_from(cluster_id.as_slice()).context("the node sent an invalid cluster id")?;
    let expected = expected_id(&run.state, secret);
    if actual != expected {
        let error = anyhow!("the node reports cluster id {actual}, but the master secret yields {expected}");
        return Err(error).advise("do not use this cluster; terminate it with `constellation terminate`");
    }
    let rewritten = kubeconfig::rewrite(&kubeconfig, &node.host, node.ports.kubernetes)?;
    run.workspace
        .write_own(&mut run.state, names::ADMIN_CONF, rewritten.as_bytes(), Access::Owner)?;
    is_a_cluster(&mut run.state, node, expected);
    Ok(run.workspace.save_state(&run.state)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_master_secret_has_the_agreed_form() {
        let secret = MasterSecret::new(Zeroizing::new(vec![0xfb; 32]), vec![0xff; 32]).unwrap();
        assert_eq!(
            kms_uri(&secret),
            "kms://cluster-kms?key=-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s=&salt=__________________________________________8="
        );
    }
}
