use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use attestation::{Attester, Verifiers};
use attestation_tpm::{Membership, PcrPolicy, SocketTransport, Tpm, TpmAttester};
use attestation_variants::qemu_vtpm;
use attested_tls::{Endpoint, PeerPolicy};
use grpc_api::join::IssueJoinTicketRequest;
use measurements::{PcrIndex, PcrValue, ReferenceValues};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use test_tpm::SoftwareTpm;

/// A machine that is in no cluster.
pub struct Node {
    attester: Arc<TpmAttester>,
    // After the attester, which still speaks to it when it is dropped.
    _tpm: SoftwareTpm,
}

impl Node {
    /// A new machine.
    ///
    /// # Errors
    /// When its TPM does not come up.
    pub fn boot() -> Result<Self> {
        let tpm = SoftwareTpm::start()?;
        Ok(Self {
            attester: Arc::new(attester(&tpm)?),
            _tpm: tpm,
        })
    }

    /// By which it proves what it runs.
    #[must_use]
    pub fn attester(&self) -> &TpmAttester {
        &self.attester
    }

    /// What a node accepts of a join service: its own image, and membership of some cluster.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        let attester: Arc<dyn Attester> = self.attester.clone();
        let verifier = qemu_vtpm::verifier(PcrPolicy::new(image(), Membership::Any));
        Endpoint::new(Some(attester), PeerPolicy::Attested(Arc::new(Verifiers::one(verifier))))
    }
}

/// The image of all our machines: PCR 11 of a software TPM that booted nothing is zero.
#[must_use]
pub fn image() -> ReferenceValues {
    ReferenceValues::new("image", BTreeMap::from([(PcrIndex::new(11), PcrValue::ZERO)]))
}

/// What a worker requests.
///
/// # Errors
/// When no key can be made.
pub fn join_request(name: &str, disk: &str) -> Result<IssueJoinTicketRequest> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("system:node:{name}"));
    let key = KeyPair::generate()?;
    Ok(IssueJoinTicketRequest {
        disk_uuid: disk.into(),
        certificate_request: params.serialize_request(&key)?.der().to_vec(),
        ..IssueJoinTicketRequest::default()
    })
}

pub(crate) fn attester(tpm: &SoftwareTpm) -> Result<TpmAttester> {
    let transport = SocketTransport::connect(&tpm.socket())?;
    Ok(qemu_vtpm::attester_on(Tpm::new(transport))?)
}
