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
use x509_parser::asn1_rs::{Any, Class, Tag};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use yasna::DERWriter;
use yasna::models::ObjectIdentifier;

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
    #[error("a client certificate has no addresses")]
    ClientAddresses,
    #[error("the certificate request is not written as a kubelet writes it")]
    NotCanonical,
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

    /// Parses a kubelet's request for the certificate with which it logs in at the API server, and returns the node's name.
    ///
    /// # Security
    /// Somebody else signs it, after parsing it with another parser, which may skip what this one takes. So only one way to write
    /// the subject is taken.
    pub(crate) fn parse_client(der: &[u8]) -> Result<NodeName, CertificateRequestError> {
        let Self { node, addresses, .. } = Self::parse(der)?;
        if !addresses.is_empty() {
            return Err(CertificateRequestError::ClientAddresses);
        }
        if names_only(der, &node) {
            Ok(node)
        } else {
            Err(CertificateRequestError::NotCanonical)
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

/// Whether a `CertificationRequest` (RFC 2986 section 4.2) has this node's subject in one of its two canonical forms, no attributes, and
/// nothing besides.
fn names_only(der: &[u8], node: &NodeName) -> bool {
    let Some([info, _algorithm, _signature]) = elements(der) else {
        return false;
    };
    let Some([version, subject, _key, attributes]) = elements(info) else {
        return false;
    };
    // Go writes names as PrintableString, others as UTF8String.
    let texts: [fn(DERWriter<'_>, &str); 2] = [
        |writer, text| writer.write_printable_string(text),
        |writer, text| writer.write_utf8_string(text),
    ];
    version == [2, 1, 0] && attributes == [0xa0, 0] && texts.into_iter().any(|text| subject == subject_of(node, text))
}

/// The DER of `O=system:nodes, CN=system:node:<name>`, with each text written like this.
fn subject_of(node: &NodeName, text: fn(DERWriter<'_>, &str)) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|names| {
            for (attribute, value) in [(10, ORGANIZATION.to_owned()), (3, format!("{NAME_PREFIX}{node}"))] {
                names.next().write_set(|set| {
                    set.next().write_sequence(|name| {
                        name.next()
                            .write_oid(&ObjectIdentifier::from_slice(&[2, 5, 4, attribute]));
                        text(name.next(), &value);
                    });
                });
            }
        });
    })
}

/// The encodings of exactly so many elements of a SEQUENCE.
fn elements<const N: usize>(sequence: &[u8]) -> Option<[&[u8]; N]> {
    let (rest, outer) = Any::from_der(sequence).ok()?;
    let is_sequence = outer.header.tag() == Tag::Sequence && outer.header.class() == Class::Universal;
    if !rest.is_empty() || !is_sequence {
        return None;
    }
    let (mut content, mut found) = (outer.data, [&[][..]; N]);
    for element in &mut found {
        let (rest, _) = Any::from_der(content).ok()?;
        *element = &content[..content.len() - rest.len()];
        content = rest;
    }
    content.is_empty().then_some(found)
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
    use rcgen::{BasicConstraints, SigningKey};
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

    type Subject = fn(&mut yasna::DERWriterSeq<'_>);

    /// The parts of a request in which a parser could overlook something.
    struct Parts {
        version: u8,
        subject: Subject,
        attributes: Vec<u8>,
        /// Behind the last element.
        more: Vec<u8>,
    }

    impl Parts {
        fn of(subject: Subject) -> Self {
            Self {
                version: 0,
                subject,
                attributes: vec![0xa0, 0],
                more: Vec::new(),
            }
        }

        /// Signed by its own key.
        fn request(self) -> Vec<u8> {
            let key = KeyPair::generate().unwrap();
            let info = yasna::construct_der(|writer| {
                writer.write_sequence(|info| {
                    info.next().write_u8(self.version);
                    info.next().write_sequence(self.subject);
                    info.next()
                        .write_der(&rcgen::PublicKeyData::subject_public_key_info(&key));
                    info.next().write_der(&self.attributes);
                });
            });
            let signature = key.sign(&info).unwrap();
            let signature = yasna::construct_der(|writer| writer.write_bitvec_bytes(&signature, signature.len() * 8));
            yasna::construct_der(|writer| {
                writer.write_sequence(|request| {
                    request.next().write_der(&info);
                    // ecdsa-with-SHA256 (RFC 5758 section 3.2).
                    request.next().write_sequence(|algorithm| {
                        let oid = ObjectIdentifier::from_slice(&[1, 2, 840, 10045, 4, 3, 2]);
                        algorithm.next().write_oid(&oid);
                    });
                    request.next().write_der(&[signature, self.more].concat());
                });
            })
        }
    }

    fn name(names: &mut yasna::DERWriterSeq<'_>, attribute: u64, write: impl Fn(DERWriter<'_>)) {
        names.next().write_set(|set| {
            set.next().write_sequence(|name| {
                name.next()
                    .write_oid(&ObjectIdentifier::from_slice(&[2, 5, 4, attribute]));
                write(name.next());
            });
        });
    }

    fn printable(names: &mut yasna::DERWriterSeq<'_>, attribute: u64, value: &str) {
        name(names, attribute, |writer| writer.write_printable_string(value));
    }

    fn nodes(names: &mut yasna::DERWriterSeq<'_>) {
        printable(names, 10, "system:nodes");
        printable(names, 3, "system:node:worker-0");
    }

    #[test]
    fn a_kubelets_request_is_taken_as_go_writes_it() {
        let taken = KubeletRequest::parse_client(&Parts::of(nodes).request()).unwrap();
        assert_eq!(taken.as_str(), "worker-0");
    }

    /// Each of these is another node's to some parser.
    #[test]
    fn no_other_name_hides_behind_the_one_that_is_looked_at() {
        let hidden: [Subject; 6] = [
            |names| {
                nodes(names);
                // Here this side stops reading, and Go goes on.
                names.next().write_set(|_| {});
                printable(names, 3, "system:node:control-plane-0");
            },
            |names| {
                nodes(names);
                printable(names, 3, "system:node:control-plane-0");
            },
            |names| {
                printable(names, 10, "system:nodes");
                printable(names, 3, "system:node:control-plane-0");
                // [12], which is not a UTF8String.
                name(names, 3, |writer| {
                    writer.write_der(&[&[0x8c, 20][..], b"system:node:worker-0"].concat())
                });
            },
            |names| {
                printable(names, 10, "system:nodes");
                printable(names, 3, "system:node:control-plane-0");
                // A constructed UTF8String.
                name(names, 3, |writer| {
                    writer.write_der(&[&[0x2c, 20][..], b"system:node:worker-0"].concat())
                });
            },
            |names| {
                printable(names, 3, "system:node:worker-0");
                printable(names, 10, "system:nodes");
            },
            |names| {
                printable(names, 10, "system:nodes");
                name(names, 3, |writer| writer.write_utf8_string("system:node:worker-0"));
            },
        ];
        for (number, subject) in hidden.into_iter().enumerate() {
            assert!(
                KubeletRequest::parse_client(&Parts::of(subject).request()).is_err(),
                "{number}"
            );
        }
    }

    /// All else is as a kubelet writes it.
    #[test]
    fn nothing_else_hides_in_a_clients_request() {
        let changes: [fn(&mut Parts); 3] = [
            |parts| parts.version = 1,
            // One attribute: challengePassword (RFC 2985 section 5.4.1).
            |parts| {
                let oid = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 7];
                let attribute = [&[0x30, 16][..], &oid, &[0x31, 3, 0x0c, 1, b'x']].concat();
                parts.attributes = [&[0xa0, 18][..], &attribute].concat();
            },
            // NULL.
            |parts| parts.more = vec![5, 0],
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut parts = Parts::of(nodes);
            change(&mut parts);
            let request = parts.request();
            // Nothing before notices.
            assert!(KubeletRequest::parse(&request).is_ok(), "{number}");
            let refused = KubeletRequest::parse_client(&request);
            assert!(
                matches!(refused, Err(CertificateRequestError::NotCanonical)),
                "{number}"
            );
        }
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
