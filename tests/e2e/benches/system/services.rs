//! The three services under load.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use attestation::{ExpectedMembership, Nonce, Purpose};
use attested_tls::{Endpoint, PeerPolicy, channel};
use grpc_api::verify::GetAttestationRequest;
use grpc_api::verify::api_client::ApiClient;
use service_runtime::Memory;
use test_figures::{Clock, Samples, Table, WARM_UP};
use test_machines::{SOFTWARE_TPM, verifiers};
use test_services::{ControlPlane, ServiceProcess, VerificationService};

use crate::load::{Load, Meter};
use crate::progress::say;
use crate::{joins, keys};

const ROUNDS: usize = 200;

/// What was measured.
pub(crate) struct Figures {
    pub(crate) requests: Table,
    /// After all requests.
    pub(crate) memory: Vec<(&'static str, Memory)>,
}

pub(crate) fn measure(programs: &Path) -> Result<Figures> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(load(programs))
}

async fn load(programs: &Path) -> Result<Figures> {
    say("starting etcd, kube-apiserver and the services");
    let control_plane = Arc::new(ControlPlane::start(programs, SOFTWARE_TPM).await?);
    let verification = VerificationService::start(programs, SOFTWARE_TPM).await?;
    let mut requests = Table::new("Requests to services", &Load::COLUMNS);
    keys::measure(control_plane.key_service())
        .await?
        .write("DrawNonce and AdmitNode", &mut requests);
    joins::measure(control_plane.clone(), &mut requests).await?;
    verifications(&verification)
        .await?
        .write("session and GetAttestation", &mut requests);
    requests.note("Per s, 8: eight callers or nodes at once. Callers, API server and TPMs share the machine's cores.");
    let memory = [
        ("key-service", control_plane.key_service().process()),
        ("join-service", control_plane.join_service()),
        ("attestation-daemon", control_plane.attestation().process()),
        ("verification-service", verification.process()),
    ];
    let memory = memory.map(|(name, process)| memory_of(name, process));
    Ok(Figures {
        requests,
        memory: memory.into_iter().collect::<Result<_>>()?,
    })
}

fn memory_of(name: &'static str, process: &ServiceProcess) -> Result<(&'static str, Memory)> {
    Ok((name, Memory::of(process.id())?))
}

/// Anyone verifies a node: a session in which it attests, and once more over a nonce.
async fn verifications(service: &VerificationService) -> Result<Load> {
    say("verifying a node");
    let accepted = verifiers(SOFTWARE_TPM, ExpectedMembership::New);
    let endpoint = Endpoint::new(None, PeerPolicy::Attested(Arc::new(accepted)));
    let meter = Meter::start(service.process().id())?;
    let alone = Samples::take_async(Clock::Wall, ROUNDS, async || {
        let session = channel(&endpoint, Purpose::Verify, service.address()).await?;
        let nonce = Nonce::generate().as_bytes().to_vec();
        ApiClient::new(session.channel)
            .get_attestation(GetAttestationRequest { nonce })
            .await?;
        Ok(())
    });
    Ok(Load {
        alone: alone.await?,
        together: None,
        each: Some(meter.each(WARM_UP + ROUNDS)?),
    })
}
