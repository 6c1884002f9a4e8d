use std::sync::Arc;

use anyhow::Result;
use attestation::{Attester, ExpectedMembership, MeasuringAttester};
use attested_tls::{Endpoint, PeerPolicy};
use cluster_types::OperatorPublicKey;
use grpc_api::join::IssueJoinTicketRequest;
use rcgen::{CertificateParams, CertificateSigningRequest, DistinguishedName, DnType, KeyPair, SanType};
use test_machines::{Machine, Technology, operator, verifiers};

/// A machine that is in no cluster.
pub struct JoiningNode {
    technology: &'static dyn Technology,
    attester: Arc<dyn MeasuringAttester>,
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
            machine,
        })
    }

    /// By which it proves what it runs.
    #[must_use]
    pub fn attester(&self) -> &dyn MeasuringAttester {
        &*self.attester
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
        Endpoint::new(Some(attester), PeerPolicy::Attested(Arc::new(accepted)))
    }
}

/// What a worker requests.
///
/// # Errors
/// When no key can be made.
pub fn join_request(name: &str, address: [u8; 4]) -> Result<IssueJoinTicketRequest> {
    let request = certificate_request(name, vec![SanType::IpAddress(address.into())])?;
    Ok(IssueJoinTicketRequest {
        certificate_request: request.der().to_vec(),
        ..IssueJoinTicketRequest::default()
    })
}

/// What the kubelet of this node requests at the API server to log in there, PEM.
///
/// # Errors
/// When no key can be made.
pub fn client_certificate_request(name: &str) -> Result<String> {
    Ok(certificate_request(name, Vec::new())?.pem()?)
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
