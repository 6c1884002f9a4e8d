//! Whoever has taken over the join service, and wants Evidence that it does not need.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use attestation::{AttestError, Attester, BindingParts, Evidence, Nonce, Purpose};
use attestation_daemon_client::AttestationDaemon;
use cluster_types::Service;
use e2e::{Cluster, Image};
use error_report::Chain;
use serde_json::json;
use tempfile::TempDir;
use test_services::server_session;
use tokio::task::spawn_blocking;

use crate::attacks::{blocking, forward};
use crate::workload;
use crate::workload::CONTROL_PLANE;

/// A pod with the daemon's socket and the join service's user gets what the join service gets; as somebody else it gets nothing.
pub(crate) fn the_attestation_daemons_socket_is_for_its_service_alone(cluster: &Cluster, _: &Image) -> Result<()> {
    let (folder, join) = (TempDir::new()?, Service::Join.user());
    for (name, user) in [("attestation-thief", join), ("attestation-stranger", join + 1)] {
        let socket = "/run/constellation/attestation/join-service";
        let mut thief = workload::socket_thief(name, socket);
        thief["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": user });
        cluster.create(&thief)?;
    }
    let reach = |pod: &str| -> Result<_> {
        workload::wait_until_ready(cluster, pod)?;
        cluster.forward(workload::PRIVILEGED, &format!("pod/{pod}"), workload::THIEFS_PORT)
    };
    let (thief, stranger) = (reach("attestation-thief")?, reach("attestation-stranger")?);
    let console = || cluster.console(CONTROL_PLANE);
    let before = console()?.len();
    blocking(async {
        let daemon = connect(&folder.path().join("thief"), thief.address()).await??;
        for purpose in [Purpose::Join, Purpose::Rejoin] {
            attest(&daemon, BindingParts::Session(server_session(purpose))).await?;
        }
        // The first refusal is told, further ones are not for a while.
        for purpose in [Purpose::Init, Purpose::Recover, Purpose::Verify] {
            must_be_refused(attest(&daemon, BindingParts::Session(server_session(purpose))).await)?;
        }
        must_be_refused(attest(&daemon, BindingParts::Nonce(Nonce::generate())).await)?;
        let refused = connect(&folder.path().join("stranger"), stranger.address()).await?;
        ensure!(refused.is_err(), "another user reached the socket");
        Ok(())
    })?;
    let log = cluster.kubectl(["logs", "--namespace", workload::PRIVILEGED, "attestation-stranger"])?;
    ensure!(log.contains("Permission denied"), "{log}");
    cluster.wait_until("the reason on the console", || {
        let console = console()?;
        let new = console.get(before..).unwrap_or_default();
        Ok(new.contains("no evidence for this purpose") && new.contains("\"requested\":\"init\""))
    })
}

/// Forwards a socket of this name to the pod, and asks the daemon behind it.
async fn connect(socket: &Path, pod: &str) -> Result<Result<Arc<AttestationDaemon>>> {
    forward(socket, pod)?;
    Ok(AttestationDaemon::connect(socket)
        .await
        .map(Arc::new)
        .map_err(Into::into))
}

async fn attest(daemon: &Arc<AttestationDaemon>, parts: BindingParts) -> Result<Evidence, AttestError> {
    let daemon = daemon.clone();
    spawn_blocking(move || daemon.attest(&parts))
        .await
        .expect("attesting does not panic")
}

fn must_be_refused(evidence: Result<Evidence, AttestError>) -> Result<()> {
    let refusal = evidence
        .err()
        .map(|error| Chain(&error).to_string())
        .unwrap_or_default();
    ensure!(refusal.contains("this socket is not for"), "{refusal:?}");
    Ok(())
}
