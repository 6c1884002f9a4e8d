//! Attested sessions with the bootstrapper of a VM, opened as the CLI opens them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use attestation::{
    Claim, ClaimValue, Expectations, ExpectedMembership, ExpectedStatements, Finding, NotAffirmed, Purpose, Severity,
    Variants, Verifiers,
};
use attestation_variants::ReleaseVariants;
use attested_tls::{AttestedNode, Endpoint, HandshakeError, PeerPolicy, channel};
use error_report::Chain;
use grpc_api::init::InitRequest;
use grpc_api::init::api_client::ApiClient;
use measurements::ReferenceValues;
use tokio::runtime;
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::{Vm, metadata};

/// Part of every secret that a test plants. It must appear on no console.
pub const CANARY: &str = "canary-6b1f0d9e";

/// The bootstrapper opens its port soon after it has its metadata.
const CONNECT_LIMIT: Duration = Duration::from_secs(300);
/// Between two attempts to connect.
const INTERVAL: Duration = Duration::from_millis(500);

/// The registers that a node quoted, those too that are not compared.
pub type Registers = BTreeMap<u8, ClaimValue>;

/// What an appraisal said about a node.
#[derive(Debug)]
pub enum Verdict {
    /// The session is open. These are the registers that the node quoted.
    Affirming(Registers),
    /// The node is not what it should be.
    NotAffirmed(NotAffirmed),
}

impl Verdict {
    /// # Errors
    /// When the verdict was another.
    pub fn must_be_affirming(self) -> Result<()> {
        self.affirmed_registers().map(drop)
    }

    /// The registers of a node that is what it should be, also those that are not compared.
    ///
    /// # Errors
    /// When the verdict was another.
    pub fn affirmed_registers(self) -> Result<Registers> {
        match self {
            Self::Affirming(registers) => Ok(registers),
            Self::NotAffirmed(refusal) => Err(anyhow!(refusal)),
        }
    }

    /// # Errors
    /// When the node was not refused, or not for exactly these registers.
    pub fn must_name_registers(self, expected: &[u8]) -> Result<()> {
        let Self::NotAffirmed(refusal) = self else {
            bail!("the session was opened, expected a refusal that names PCR {expected:?}");
        };
        let named: BTreeSet<u8> = refusal.result.findings().filter_map(required_register).collect();
        ensure!(
            named == expected.iter().copied().collect(),
            "expected a refusal that names PCR {expected:?}, but {refusal}"
        );
        Ok(())
    }
}

fn required_register(finding: Finding) -> Option<u8> {
    let is_required = finding.severity == Severity::Contraindicates;
    index(&finding.subject).filter(|_| is_required)
}

/// Which register a claim is about.
fn index(name: &str) -> Option<u8> {
    name.strip_prefix("PCR ")?.parse().ok()
}

fn registers(claims: &[Claim]) -> Registers {
    let register = |claim: &Claim| Some((index(&claim.name)?, claim.actual.clone()));
    claims.iter().filter_map(register).collect()
}

/// Waits for the bootstrapper and appraises it: the node must have booted this image and be in no cluster.
///
/// # Errors
/// When the machine ends, or another reason prevents a verdict.
pub fn attest(vm: &mut Vm, image: &ReferenceValues) -> Result<Verdict> {
    let verdict = match blocking(open(vm, image))?? {
        Ok((_, node)) => Verdict::Affirming(registers(node.result().claims())),
        Err(refusal) => Verdict::NotAffirmed(refusal),
    };
    match &verdict {
        Verdict::Affirming(_) => vm.say("attestation is affirming"),
        Verdict::NotAffirmed(refusal) => vm.say(&refusal.to_string()),
    }
    Ok(verdict)
}

/// Asks the node to start a cluster, with secrets that are none, and gives the refusal.
///
/// # Errors
/// When there is no session, or the node does not refuse.
pub fn init_with_wrong_secret(vm: &mut Vm, image: &ReferenceValues) -> Result<Status> {
    let request = InitRequest {
        kms_uri: format!("kms://cluster-kms?key={CANARY}&salt={CANARY}"),
        init_secret: CANARY.into(),
        measurement_salt: CANARY.into(),
        cluster_name: CANARY.into(),
        ..InitRequest::default()
    };
    blocking(async {
        let (channel, _) = open(vm, image).await??;
        match ApiClient::new(channel).init(request).await {
            Ok(_) => bail!("the node took a wrong init secret"),
            Err(status) => {
                ensure!(status.code() != Code::Unavailable, "the session broke: {status}");
                Ok(status)
            }
        }
    })?
}

type Opened = (Channel, AttestedNode);

async fn open(vm: &mut Vm, image: &ReferenceValues) -> Result<Result<Opened, NotAffirmed>> {
    vm.wait_for_bootstrapper()?;
    let expectations = Expectations {
        image: image.clone(),
        statements: ExpectedStatements {
            operator: metadata::OPERATOR,
            membership: ExpectedMembership::New,
        },
    };
    let verifier = ReleaseVariants.verifier(image.variant(), &expectations)?;
    let endpoint = Endpoint::new(None, PeerPolicy::Attested(Arc::new(Verifiers::one(verifier))));
    let start = Instant::now();
    loop {
        match channel(&endpoint, Purpose::Init, &vm.bootstrapper().to_string()).await {
            Ok(session) => return Ok(Ok((session.channel, session.node.context("the node did not attest")?))),
            Err(HandshakeError::NotAffirmed(refusal)) => return Ok(Err(refusal)),
            // The port is not open yet: QEMU takes the connection and drops it.
            Err(error @ HandshakeError::Io(_)) if start.elapsed() > CONNECT_LIMIT => {
                return Err(error).context("no session with the bootstrapper");
            }
            Err(HandshakeError::Io(_)) => sleep(INTERVAL).await,
            Err(error) => bail!("no session with the bootstrapper: {}", Chain(&error)),
        }
        vm.must_be_running()?;
    }
}

fn blocking<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}
