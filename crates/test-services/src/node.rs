use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Result;
use attestation::{
    Attester, BindingParts, Direction, ExpectedMembership, MeasuringAttester, Nonce, Purpose, SessionEvidence,
    SessionParts,
};
use attested_tls::{Endpoint, PeerPolicy};
use cluster_types::OperatorPublicKey;
use digest::Digest;
use grpc_api::join::IssueJoinTicketRequest;
use node_secrets::SealingKey;
use rcgen::{CertificateParams, CertificateSigningRequest, DistinguishedName, DnType, KeyPair, SanType};
use test_machines::{Machine, Technology, operator, verifiers};

/// A machine that is in no cluster.
pub struct JoiningNode {
    technology: &'static dyn Technology,
    attester: Arc<dyn MeasuringAttester>,
    sealing_key: SealingKey,
    // After the attester, which still speaks to it when it is dropped.
    machine: Box<dyn Machine>,
}

impl JoiningNode {
    /// A new machine of the operator of tests.
    ///
    /// # Errors
    /// When its device does not come up.
    pub fn boot(technology: &'static dyn Technology) -> Result<Self> {
        Self::boot_for(technology, &operator())
    }

    /// A new machine of this operator.
    ///
    /// # Errors
    /// When its device does not come up.
    pub fn boot_for(technology: &'static dyn Technology, operator: &OperatorPublicKey) -> Result<Self> {
        let machine = technology.boot_for(operator)?;
        Ok(Self {
            technology,
            attester: machine.attester()?,
            sealing_key: SealingKey::generate(),
            machine,
        })
    }

    /// By which it proves what it runs.
    #[must_use]
    pub fn attester(&self) -> &dyn MeasuringAttester {
        &*self.attester
    }

    /// To which its secrets are sealed.
    #[must_use]
    pub fn sealing_key(&self) -> &SealingKey {
        &self.sealing_key
    }

    /// The machine itself.
    #[must_use]
    pub fn machine(&self) -> &dyn Machine {
        &*self.machine
    }

    /// What a node accepts of a join service: its own image, the operator of tests, and membership of some cluster.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        let attester: Arc<dyn Attester> = self.attester.clone();
        let accepted = verifiers(self.technology, ExpectedMembership::Any);
        let endpoint = Endpoint::new(Some(attester), PeerPolicy::Attested(Arc::new(accepted)));
        endpoint.with_sealing_key(self.sealing_key.public())
    }
}

/// What a machine presents to join in a TLS session that never existed. Only an end of that session could tell.
///
/// # Errors
/// When its device fails.
pub fn presented(attester: &dyn Attester, nonce: Nonce, purpose: Purpose, key: &SealingKey) -> Result<SessionEvidence> {
    let parts = SessionParts {
        sealing_key: Some(key.public()),
        ..session_of(nonce, purpose)
    };
    let evidence = attester.attest(&BindingParts::Session(parts))?;
    Ok(SessionEvidence { parts, evidence })
}

/// A TLS session that never existed, as its server would attest in it.
#[must_use]
pub fn server_session(purpose: Purpose) -> SessionParts {
    SessionParts {
        direction: Direction::Server,
        sealing_key: None,
        ..session_of(Nonce::generate(), purpose)
    }
}

fn session_of(nonce: Nonce, purpose: Purpose) -> SessionParts {
    SessionParts {
        direction: Direction::Client,
        exporter: [1; 32],
        attester_leaf: Digest::new([2; 32]),
        verifier_leaf: Digest::new([3; 32]),
        nonce,
        purpose,
        sealing_key: None,
    }
}

/// What a worker requests.
#[must_use]
pub fn join_request(name: &str, address: [u8; 4]) -> IssueJoinTicketRequest {
    IssueJoinTicketRequest {
        node_name: name.to_owned(),
        node_address: Ipv4Addr::from(address).to_string(),
        ..IssueJoinTicketRequest::default()
    }
}

/// What the kubelet of this node requests at the API server to log in there, PEM.
///
/// # Errors
/// When no key can be made.
pub fn client_certificate_request(name: &str) -> Result<String> {
    Ok(certificate_request(name, Vec::new())?.pem()?)
}

/// What the kubelet of this node requests to serve at this address, PEM.
///
/// # Errors
/// When no key can be made, or the name is not a DNS name.
pub fn serving_certificate_request(name: &str, address: [u8; 4]) -> Result<String> {
    let names = vec![SanType::DnsName(name.try_into()?), SanType::IpAddress(address.into())];
    Ok(certificate_request(name, names)?.pem()?)
}

fn certificate_request(name: &str, addresses: Vec<SanType>) -> Result<CertificateSigningRequest> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("system:node:{name}"));
    params.subject_alt_names = addresses;
    Ok(params.serialize_request(&KeyPair::generate()?)?)
}
