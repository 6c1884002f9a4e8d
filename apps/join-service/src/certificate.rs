//! What a kubelet's request for a certificate may say.
//!
//! Kubernetes' controller signs what is approved, after parsing the request with another parser, which may skip what ours takes. So
//! only the few ways in which a kubelet writes a request are taken, byte by byte, apart from key and signature.

use std::net::Ipv4Addr;

use cluster_types::{NodeName, ParseNodeNameError};
use rcgen::{CertificateSigningRequestParams, DistinguishedName, DnType, DnValue};
use x509_parser::asn1_rs::{Any, Class, Tag};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use yasna::DERWriter;
use yasna::models::ObjectIdentifier;

pub(crate) const ORGANIZATION: &str = "system:nodes";
pub(crate) const NAME_PREFIX: &str = "system:node:";
/// No attributes of a request (RFC 2986 section 4.1).
const NO_ATTRIBUTES: [u8; 2] = [0xa0, 0];

/// A request that names a node and is signed by its own key.
#[derive(Debug)]
pub(crate) struct KubeletRequest<'a> {
    der: &'a [u8],
    /// Well-formed, but not yet known to be the requester's.
    pub(crate) node: NodeName,
}

/// A request for something that no kubelet gets.
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
    #[error("the certificate request is not written as a kubelet writes it, with a name alone")]
    NotAClients,
    #[error(
        "the certificate request is not written as a kubelet writes it that serves at {0} and by its node's name, and nowhere else"
    )]
    NotServingAt(Ipv4Addr),
}

impl<'a> KubeletRequest<'a> {
    /// Parses a PKCS#10 request, DER.
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, CertificateRequestError> {
        // What follows the request would be overlooked here.
        let (rest, _) = X509CertificationRequest::from_der(der).map_err(|_| CertificateRequestError::Trailing)?;
        if !rest.is_empty() {
            return Err(CertificateRequestError::Trailing);
        }
        let request =
            CertificateSigningRequestParams::from_der(&der.into()).map_err(CertificateRequestError::Malformed)?;
        let node = check_subject(&request.params.distinguished_name)?;
        Ok(Self { der, node })
    }

    /// Takes a request for the certificate with which a kubelet logs in at the API server.
    pub(crate) fn for_client(self) -> Result<NodeName, CertificateRequestError> {
        if self.is_canonical_with(&[NO_ATTRIBUTES.to_vec()]) {
            Ok(self.node)
        } else {
            Err(CertificateRequestError::NotAClients)
        }
    }

    /// Takes a request for the certificate with which a kubelet serves at its node's address.
    pub(crate) fn for_serving_at(self, address: Ipv4Addr) -> Result<NodeName, CertificateRequestError> {
        // A kubelet adds its node's name where that is the name of the host.
        let names = [Some(&self.node), None];
        if self.is_canonical_with(&names.map(|name| alternative_names(name, address))) {
            Ok(self.node)
        } else {
            Err(CertificateRequestError::NotServingAt(address))
        }
    }

    /// Whether a `CertificationRequest` (RFC 2986 section 4.2) has this node's subject in one of its two canonical forms, attributes that
    /// are exactly one of these, and nothing besides.
    fn is_canonical_with(&self, allowed: &[Vec<u8>]) -> bool {
        let Some([info, _algorithm, _signature]) = elements(self.der) else {
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
        version == [2, 1, 0]
            && allowed.iter().any(|allowed| attributes == allowed)
            && texts.into_iter().any(|text| subject == subject_of(&self.node, text))
    }
}

/// The DER of attributes that consist of a request for one extension, the subject's alternative names (RFC 2985 section 5.4.2, RFC 5280
/// section 4.2.1.6): a DNS name, if there is one, then the address.
fn alternative_names(name: Option<&NodeName>, address: Ipv4Addr) -> Vec<u8> {
    let oid = ObjectIdentifier::from_slice;
    let names = yasna::construct_der(|writer| {
        writer.write_sequence(|names| {
            if let Some(name) = name {
                let tag = yasna::Tag::context(2);
                names
                    .next()
                    .write_tagged_implicit(tag, |writer| writer.write_ia5_string(name.as_str()));
            }
            let tag = yasna::Tag::context(7);
            names
                .next()
                .write_tagged_implicit(tag, |writer| writer.write_bytes(&address.octets()));
        });
    });
    yasna::construct_der(|writer| {
        writer.write_tagged_implicit(yasna::Tag::context(0), |writer| {
            writer.write_set(|attributes| {
                attributes.next().write_sequence(|attribute| {
                    attribute.next().write_oid(&oid(&[1, 2, 840, 113_549, 1, 9, 14]));
                    attribute.next().write_set(|values| {
                        values.next().write_sequence(|extensions| {
                            extensions.next().write_sequence(|extension| {
                                extension.next().write_oid(&oid(&[2, 5, 29, 17]));
                                extension.next().write_bytes(&names);
                            });
                        });
                    });
                });
            });
        });
    })
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

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType, SigningKey};

    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 2, 100);

    /// A request of worker-0, changed in one place.
    fn request(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:worker-0");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    fn client(der: &[u8]) -> Result<NodeName, CertificateRequestError> {
        KubeletRequest::parse(der)?.for_client()
    }

    /// What a kubelet asks for that serves by these names, and is to serve at its node's address.
    fn serving(names: Vec<SanType>) -> Result<NodeName, CertificateRequestError> {
        let der = request(|params| params.subject_alt_names = names);
        KubeletRequest::parse(&der)?.for_serving_at(ADDRESS)
    }

    fn subject(change: impl FnOnce(&mut DistinguishedName)) -> CertificateRequestError {
        let der = request(|params| change(&mut params.distinguished_name));
        KubeletRequest::parse(&der).unwrap_err()
    }

    #[test]
    fn cluster_administrators_are_not_made_here() {
        let refused = subject(|subject| subject.push(DnType::OrganizationName, "system:masters"));
        assert!(matches!(refused, CertificateRequestError::Organization(found) if found == "system:masters"));
    }

    #[test]
    fn only_nodes_are_named() {
        let refused = subject(|subject| subject.push(DnType::CommonName, "kubernetes-admin"));
        assert!(matches!(refused, CertificateRequestError::CommonName(_)));
        let refused = subject(|subject| subject.push(DnType::CommonName, "system:node:../etcd"));
        assert!(matches!(refused, CertificateRequestError::NodeName(_)));
    }

    #[test]
    fn further_subject_attributes_are_refused() {
        let refused = subject(|subject| subject.push(DnType::CountryName, "XX"));
        assert!(matches!(refused, CertificateRequestError::Subject(3)));
    }

    fn at(address: [u8; 4]) -> SanType {
        SanType::IpAddress(address.into())
    }

    fn named(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    #[test]
    fn a_kubelet_serves_at_its_nodes_address_and_by_its_name() {
        for names in [
            vec![at(ADDRESS.octets())],
            vec![named("worker-0"), at(ADDRESS.octets())],
        ] {
            assert_eq!(serving(names).unwrap().as_str(), "worker-0");
        }
    }

    #[test]
    fn a_kubelet_serves_nowhere_else() {
        let own = at(ADDRESS.octets());
        for names in [
            vec![],
            vec![named("worker-0")],
            vec![at([10, 42, 1, 100])],
            vec![own.clone(), at([10, 96, 0, 1])],
            vec![own.clone(), own.clone()],
            vec![named("kubernetes.default.svc"), own.clone()],
            vec![named("worker-0"), named("kubernetes"), own.clone()],
            vec![own.clone(), named("worker-0")],
            vec![SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into())],
            vec![SanType::IpAddress(ADDRESS.to_ipv6_mapped().into())],
            vec![own, SanType::Rfc822Name("root@worker-0".try_into().unwrap())],
        ] {
            let shown = format!("{names:?}");
            let refused = serving(names);
            assert!(
                matches!(refused, Err(CertificateRequestError::NotServingAt(ADDRESS))),
                "{shown}: {refused:?}"
            );
        }
    }

    /// Kubernetes' controller takes none of it over today.
    #[test]
    fn nothing_else_is_asked_for() {
        let changes: [fn(&mut CertificateParams); 2] = [
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        ];
        for change in changes {
            let of_client = request(change);
            assert!(client(&of_client).is_err());
            let of_server = request(|params| {
                params.subject_alt_names = vec![at(ADDRESS.octets())];
                change(params);
            });
            let refused = KubeletRequest::parse(&of_server).and_then(|request| request.for_serving_at(ADDRESS));
            assert!(refused.is_err());
        }
    }

    #[test]
    fn a_client_has_no_addresses() {
        let der = request(|params| params.subject_alt_names = vec![at(ADDRESS.octets())]);
        assert!(matches!(client(&der), Err(CertificateRequestError::NotAClients)));
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
        let taken = client(&Parts::of(nodes).request()).unwrap();
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
            assert!(client(&Parts::of(subject).request()).is_err(), "{number}");
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
            let refused = client(&request);
            assert!(matches!(refused, Err(CertificateRequestError::NotAClients)), "{number}");
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
