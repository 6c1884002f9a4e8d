//! The kubelet's serving certificate, and what a kubelet may request at all, also as a client.
//!
//! The ticket decides what a node may be called. The request only carries the node's public key, name and addresses;
//! everything else in it is refused or overwritten.

use std::net::{IpAddr, Ipv4Addr};

use cluster_types::{Cidr, NodeName, ParseNodeNameError};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

pub(crate) const ORGANIZATION: &str = "system:nodes";
pub(crate) const NAME_PREFIX: &str = "system:node:";
/// Allows for the difference between two machines' clocks.
const BACKDATED: Duration = Duration::minutes(5);
/// The same as the certificates that kubeadm issues.
const LIFETIME: Duration = Duration::days(365);

/// A request for nothing that a kubelet may not have.
pub(crate) struct KubeletRequest {
    request: CertificateSigningRequestParams,
    /// Well-formed, but not yet known to belong to the caller.
    pub(crate) node: NodeName,
    /// Well-formed, but not yet known to belong to the caller either.
    addresses: Vec<Ipv4Addr>,
}

/// A request for something that no ticket allows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateRequestError {
    #[error("the certificate request is malformed or not signed by its own key")]
    Malformed(#[source] rcgen::Error),
    #[error("the certificate request is malformed, or something follows it")]
    Trailing,
    #[error("the certificate request is for organization {0:?}, expected {ORGANIZATION:?}")]
    Organization(String),
    #[error("the certificate request is for {0:?}, expected {NAME_PREFIX:?} and a node name")]
    CommonName(String),
    #[error("the certificate request does not name a valid node")]
    NodeName(#[from] ParseNodeNameError),
    #[error("the certificate request has {0} subject attributes, expected organization and common name")]
    Subject(usize),
    #[error("the certificate request is for a certificate authority")]
    CertificateAuthority,
    #[error("the certificate request has a subject alternative name that is not an IPv4 address")]
    AlternativeName,
    #[error("the certificate request has {0} addresses, expected the node's one IPv4 address")]
    Addresses(usize),
    #[error(
        "the certificate request is for {0}, which no node has: it is outside the private networks, or belongs to pods or Services"
    )]
    NoNodesAddress(Ipv4Addr),
}

/// The cluster CA could not sign.
#[derive(Debug, thiserror::Error)]
#[error("the cluster's certificate authority cannot sign the certificate")]
pub(crate) struct SignError(#[from] rcgen::Error);

impl KubeletRequest {
    /// Parses a PKCS#10 request and refuses anything but a kubelet's.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, CertificateRequestError> {
        // What follows the request would be overlooked here.
        let (rest, _) = X509CertificationRequest::from_der(der).map_err(|_| CertificateRequestError::Trailing)?;
        if !rest.is_empty() {
            return Err(CertificateRequestError::Trailing);
        }
        let request =
            CertificateSigningRequestParams::from_der(&der.into()).map_err(CertificateRequestError::Malformed)?;
        let node = check_subject(&request.params.distinguished_name)?;
        if matches!(request.params.is_ca, IsCa::Ca(_)) {
            return Err(CertificateRequestError::CertificateAuthority);
        }
        let addresses = addresses(&request.params.subject_alt_names)?;
        Ok(Self {
            request,
            node,
            addresses,
        })
    }

    pub(crate) fn has_addresses(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// The one address at which the kubelet will serve. It is not yet known to belong to the caller.
    pub(crate) fn address(&self) -> Result<Ipv4Addr, CertificateRequestError> {
        let [address] = self.addresses[..] else {
            return Err(CertificateRequestError::Addresses(self.addresses.len()));
        };
        let is_anothers = Cidr::PODS.contains(address) || Cidr::SERVICES.contains(address);
        if address.is_private() && !is_anothers {
            Ok(address)
        } else {
            Err(CertificateRequestError::NoNodesAddress(address))
        }
    }

    /// Signs a serving certificate. Of the request, it contains only the key and the node name.
    pub(crate) fn sign(mut self, address: Ipv4Addr, ca_certificate: &str, ca_key: &str) -> Result<String, SignError> {
        let issuer = Issuer::from_ca_cert_pem(ca_certificate, KeyPair::from_pem(ca_key)?)?;
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{NAME_PREFIX}{}", self.node));
        params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(address))];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // The kubelet's client certificate comes from its own bootstrap; this one must not log in anywhere.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = now - BACKDATED;
        params.not_after = now + LIFETIME;
        self.request.params = params;
        Ok(self.request.signed_by(&issuer)?.pem())
    }
}

fn check_subject(subject: &DistinguishedName) -> Result<NodeName, CertificateRequestError> {
    let organization = text(subject.get(&DnType::OrganizationName));
    if organization != ORGANIZATION {
        return Err(CertificateRequestError::Organization(organization));
    }
    let common_name = text(subject.get(&DnType::CommonName));
    let Some(name) = common_name.strip_prefix(NAME_PREFIX) else {
        return Err(CertificateRequestError::CommonName(common_name));
    };
    match subject.iter().count() {
        2 => Ok(name.parse()?),
        other => Err(CertificateRequestError::Subject(other)),
    }
}

fn text(value: Option<&DnValue>) -> String {
    let text = match value {
        Some(DnValue::Utf8String(text)) => text.clone(),
        Some(DnValue::PrintableString(text)) => text.as_str().to_owned(),
        _ => String::new(),
    };
    text.chars().take(300).collect()
}

fn addresses(names: &[SanType]) -> Result<Vec<Ipv4Addr>, CertificateRequestError> {
    let address = |name: &SanType| match name {
        SanType::IpAddress(IpAddr::V4(address)) => Ok(*address),
        _ => Err(CertificateRequestError::AlternativeName),
    };
    names.iter().map(address).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::BasicConstraints;
    use x509_parser::pem::parse_x509_pem;

    use super::*;

    /// A good request, changed in one place.
    fn check(change: impl FnOnce(&mut CertificateParams)) -> Result<KubeletRequest, CertificateRequestError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:worker-0");
        params.subject_alt_names = vec![SanType::IpAddress([10, 42, 2, 100].into())];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        KubeletRequest::parse(params.serialize_request(&key).unwrap().der())
    }

    #[test]
    fn a_kubelets_request_is_signed_for_serving_only() {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca.self_signed(&ca_key).unwrap();
        // The request asks for more than it gets.
        let request = check(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        });
        let pem = request
            .unwrap()
            .sign([10, 42, 2, 100].into(), &ca.pem(), &ca_key.serialize_pem())
            .unwrap();
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert_eq!(
            certificate.subject().to_string(),
            "O=system:nodes, CN=system:node:worker-0"
        );
        assert!(!certificate.is_ca());
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        let extended = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && !extended.client_auth && !extended.any);
    }

    #[test]
    fn cluster_administrators_are_not_made_here() {
        let result = check(|params| {
            params
                .distinguished_name
                .push(DnType::OrganizationName, "system:masters")
        });
        assert!(matches!(result, Err(CertificateRequestError::Organization(found)) if found == "system:masters"));
    }

    #[test]
    fn certificate_authorities_are_not_made_here() {
        let result = check(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        assert!(matches!(result, Err(CertificateRequestError::CertificateAuthority)));
    }

    #[test]
    fn only_nodes_are_named() {
        let result = check(|params| params.distinguished_name.push(DnType::CommonName, "kubernetes-admin"));
        assert!(matches!(result, Err(CertificateRequestError::CommonName(_))));
        let result = check(|params| {
            params
                .distinguished_name
                .push(DnType::CommonName, "system:node:../etcd")
        });
        assert!(matches!(result, Err(CertificateRequestError::NodeName(_))));
    }

    #[test]
    fn further_subject_attributes_are_refused() {
        let result = check(|params| params.distinguished_name.push(DnType::CountryName, "XX"));
        assert!(matches!(result, Err(CertificateRequestError::Subject(3))));
    }

    #[test]
    fn host_names_are_refused() {
        let name = SanType::DnsName("kubernetes.default.svc".try_into().unwrap());
        let result = check(|params| params.subject_alt_names.push(name));
        assert!(matches!(result, Err(CertificateRequestError::AlternativeName)));
    }

    #[test]
    fn a_kubelet_serves_at_its_nodes_one_address() {
        let at = |addresses: &[[u8; 4]]| {
            let names = addresses.iter().map(|address| SanType::IpAddress((*address).into()));
            check(|params| params.subject_alt_names = names.collect())
                .unwrap()
                .address()
        };
        assert_eq!(at(&[[10, 42, 2, 100]]).unwrap(), Ipv4Addr::new(10, 42, 2, 100));
        for number in [&[][..], &[[10, 42, 2, 100], [10, 42, 2, 101]]] {
            assert!(matches!(at(number), Err(CertificateRequestError::Addresses(_))));
        }
        // The API server's Service, a pod, this machine, and somebody outside.
        for other in [[10, 96, 0, 1], [10, 244, 1, 2], [127, 0, 0, 1], [192, 0, 2, 1]] {
            assert!(
                matches!(at(&[other]), Err(CertificateRequestError::NoNodesAddress(_))),
                "{other:?}"
            );
        }
    }

    #[test]
    fn other_addresses_are_refused() {
        let result =
            check(|params| params.subject_alt_names = vec![SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into())]);
        assert!(matches!(result, Err(CertificateRequestError::AlternativeName)));
    }

    #[test]
    fn garbage_is_refused() {
        assert!(KubeletRequest::parse(b"\x30\x00").is_err());
        let key = KeyPair::generate().unwrap();
        let mut request = CertificateParams::default()
            .serialize_request(&key)
            .unwrap()
            .der()
            .to_vec();
        request.push(0);
        assert!(matches!(
            KubeletRequest::parse(&request),
            Err(CertificateRequestError::Trailing)
        ));
    }
}
