//! Machines that are none: programs of the host that talk to the cluster's join service and lie.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use attestation::{
    AppraisalError, AttestError, AttestationResult, Attester, BindingParts, Endorsements, Evidence, Expectations,
    ExpectedMembership, ExpectedStatements, Purpose, ReportBinding, TrustBasis, UnixTime, Variants, Verifier,
    Verifiers,
};
use attestation_variants::ReleaseVariants;
use attested_tls::{Endpoint, HandshakeError, PeerPolicy, channel};
use cluster_policy::BelievedPolicy;
use cluster_types::{DiskUuid, KeyServicePublicKey, NodeRole, OperatorPublicKey, Variant};
use e2e::{Cluster, Image};
use grpc_api::join::api_client::ApiClient;
use grpc_api::join::{IssueJoinTicketRequest, IssueJoinTicketResponse, IssueRejoinTicketRequest};
use measurements::{PcrReferences, ReferenceValues};
use node_secrets::{NodeSecrets, SealingKey};
use operator_key::OperatorKey;
use test_machines::InProcessAttester;
use tonic::Status;

/// What the cluster's nodes run, and whom they obey.
pub(crate) struct Ours<'a> {
    pub(crate) image: &'a ReferenceValues,
    pub(crate) operator: OperatorPublicKey,
}

impl<'a> Ours<'a> {
    pub(crate) fn new(cluster: &Cluster, image: &'a Image) -> Result<Self> {
        Ok(Self {
            image: image.values(),
            operator: OperatorKey::of(&cluster.master_secret()?).public(),
        })
    }
}

/// What the operator signed last.
pub(crate) fn operators_policy(cluster: &Cluster) -> Result<BelievedPolicy> {
    let operator = OperatorKey::of(&cluster.master_secret()?).public();
    let signed = cluster.state()?.policy.context("the state has no policy")?;
    Ok(signed.believe(|signer| *signer == operator)?)
}

/// A machine whose TPM says what a node of this cluster would say.
pub(crate) fn forged(ours: &Ours<'_>) -> Arc<InProcessAttester> {
    let image: PcrReferences = ours.image.values().expect("the node image is for machines with a TPM");
    let expected = image.pcrs().iter().map(|(index, value)| (*index, value.expected));
    Arc::new(InProcessAttester::claiming(&expected.collect(), &ours.operator))
}

/// The session of somebody who does not care who is at the other end, and who reads no secrets.
pub(crate) fn careless(attester: Arc<dyn Attester>) -> Endpoint {
    careless_with(attester, &SealingKey::generate())
}

fn careless_with(attester: Arc<dyn Attester>, key: &SealingKey) -> Endpoint {
    let reason = "a rogue node accepts tickets from any service";
    Endpoint::new(Some(attester), PeerPolicy::Unattested { reason }).with_sealing_key(key.public())
}

/// The session of a node, which accepts members of clusters of its own image only.
pub(crate) fn honest(attester: Arc<dyn Attester>, ours: &Ours<'_>) -> Endpoint {
    Endpoint::new(Some(attester), members(any_member(ours)))
}

/// Answers every question with the same old Evidence.
pub(crate) struct Replay(pub(crate) Evidence);

impl Attester for Replay {
    fn variant(&self) -> Variant {
        self.0.variant
    }

    fn attest(&self, _: &BindingParts) -> Result<Evidence, AttestError> {
        Ok(self.0.clone())
    }
}

/// Keeps what an attester says.
pub(crate) struct Recorder {
    attester: Arc<dyn Attester>,
    said: Mutex<Option<Evidence>>,
}

impl Recorder {
    pub(crate) fn of(attester: Arc<dyn Attester>) -> Arc<Self> {
        Arc::new(Self {
            attester,
            said: Mutex::default(),
        })
    }

    pub(crate) fn said(&self) -> Result<Evidence> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone().context("nothing was recorded")
    }
}

impl Attester for Recorder {
    fn variant(&self) -> Variant {
        self.attester.variant()
    }

    fn attest(&self, parts: &BindingParts) -> Result<Evidence, AttestError> {
        let evidence = self.attester.attest(parts)?;
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(evidence.clone());
        Ok(evidence)
    }
}

/// Answers a verifier with the verifier's own Evidence of the same session.
struct Reflector {
    variant: Variant,
    taken: Arc<Mutex<Option<Evidence>>>,
}

/// Takes the peer's Evidence and appraises it, as somebody would who wants to get on.
struct Taking {
    taken: Arc<Mutex<Option<Evidence>>>,
    verifier: Box<dyn Verifier>,
}

impl Attester for Reflector {
    fn variant(&self) -> Variant {
        self.variant
    }

    fn attest(&self, _: &BindingParts) -> Result<Evidence, AttestError> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        taken.ok_or_else(|| AttestError {
            variant: self.variant,
            source: "the service sent no evidence".into(),
        })
    }
}

impl Verifier for Taking {
    fn variant(&self) -> Variant {
        self.verifier.variant()
    }

    fn trust(&self) -> TrustBasis {
        self.verifier.trust()
    }

    fn appraise(
        &self,
        evidence: &Evidence,
        endorsements: &Endorsements,
        binding: &ReportBinding,
        now: UnixTime,
    ) -> Result<AttestationResult, AppraisalError> {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(evidence.clone());
        self.verifier.appraise(evidence, endorsements, binding, now)
    }
}

/// The session of somebody without a TPM, who sends the other side's Evidence back.
pub(crate) fn reflecting(ours: &Ours<'_>) -> Endpoint {
    let taken = Arc::new(Mutex::default());
    let verifier = Taking {
        taken: taken.clone(),
        verifier: any_member(ours),
    };
    let variant = ours.image.variant();
    Endpoint::new(Some(Arc::new(Reflector { variant, taken })), members(verifier))
}

fn any_member(ours: &Ours<'_>) -> Box<dyn Verifier> {
    let expectations = Expectations {
        image: ours.image.clone(),
        statements: ExpectedStatements {
            operator: ours.operator,
            membership: ExpectedMembership::Any,
        },
    };
    let verifier = ReleaseVariants.verifier(ours.image.variant(), &expectations);
    verifier.expect("the node image is for machines of a release")
}

fn members(verifier: impl Verifier + 'static) -> PeerPolicy {
    PeerPolicy::Attested(Arc::new(Verifiers::one(verifier)))
}

/// Asks for a ticket over a session that is expected to come about.
pub(crate) async fn join(
    endpoint: &Endpoint,
    address: &str,
    request: IssueJoinTicketRequest,
) -> Result<Result<IssueJoinTicketResponse, Status>> {
    let session = channel(endpoint, Purpose::Join, address).await?;
    let ticket = ApiClient::new(session.channel).issue_join_ticket(request).await;
    Ok(ticket.map(tonic::Response::into_inner))
}

/// Asks for the key of a disk, as its node would after a reboot.
pub(crate) async fn rejoin(
    attester: Arc<dyn Attester>,
    address: &str,
    (disk, role): (DiskUuid, NodeRole),
    key_service: &KeyServicePublicKey,
) -> Result<Result<NodeSecrets, Status>> {
    let key = SealingKey::generate();
    let session = channel(&careless_with(attester, &key), Purpose::Rejoin, address).await?;
    let request = IssueRejoinTicketRequest {
        disk_uuid: disk.to_string(),
        is_control_plane: role == NodeRole::ControlPlane,
    };
    let ticket = match ApiClient::new(session.channel).issue_rejoin_ticket(request).await {
        Ok(ticket) => ticket.into_inner(),
        Err(refusal) => return Ok(Err(refusal)),
    };
    let binding = session.own_binding.context("the service required no Evidence")?;
    let secrets = node_secrets::open(&ticket.sealed_secrets, &key, &binding, key_service)?;
    Ok(Ok(secrets))
}

/// Opens a session that the service must refuse.
pub(crate) async fn must_be_refused(endpoint: &Endpoint, address: &str) -> Result<()> {
    match channel(endpoint, Purpose::Join, address).await {
        Err(HandshakeError::RefusedByPeer(category)) if category == "attestation failed" => Ok(()),
        Err(error) => Err(error).context("refused, but for another reason"),
        Ok(_) => bail!("the session was opened"),
    }
}
