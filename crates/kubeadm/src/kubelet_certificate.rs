use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use cluster_types::NodeName;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::NodeSettings;

/// Another node's clock may be behind ours by this much.
const CLOCK_SKEW: Duration = Duration::from_secs(2 * 60 * 60);
/// The same as every leaf certificate that kubeadm issues.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The key of a kubelet's own server. It is generated on the node and never leaves it.
pub struct KubeletKey(KeyPair);

/// A kubelet key and the certificate request for it.
pub struct PendingCertificate {
    /// The kubelet's private key.
    pub key: KubeletKey,
    /// The certificate request: PKCS#10, DER.
    pub request: Vec<u8>,
}

/// The node's own certificate authority could not sign.
#[derive(Debug, thiserror::Error)]
pub enum IssueCertificateError {
    /// The CA's key is unusable.
    #[error("cannot use the cluster CA's key")]
    CaKey(#[source] rcgen::Error),
    /// The CA's certificate is unusable.
    #[error("cannot use the cluster CA's certificate")]
    CaCertificate(#[source] rcgen::Error),
    /// The certificate cannot be signed with that key.
    #[error("cannot sign the kubelet's certificate")]
    Sign(#[source] rcgen::Error),
}

impl KubeletKey {
    /// Generates a P-256 key.
    #[must_use]
    pub fn generate() -> Self {
        Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("P-256 is supported by the provider"))
    }

    /// The key as PKCS#8 PEM.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// Generates a key and a request for `CN=system:node:<name>, O=system:nodes` with the node's address.
    #[must_use]
    pub fn request(name: &NodeName, address: Ipv4Addr) -> PendingCertificate {
        let key = Self::generate();
        let request = subject(name, address)
            .serialize_request(&key.0)
            .expect("a request for a valid name can be signed");
        PendingCertificate {
            request: request.der().to_vec(),
            key,
        }
    }

    /// Certifies this key with the cluster's own CA, as the join service does for nodes that join.
    pub(crate) fn issue(
        &self,
        node: &NodeSettings,
        ca_cert_pem: &str,
        ca_key_pem: &str,
        now: SystemTime,
    ) -> Result<String, IssueCertificateError> {
        let ca_key = KeyPair::from_pem(ca_key_pem).map_err(IssueCertificateError::CaKey)?;
        let issuer = Issuer::from_ca_cert_pem(ca_cert_pem, ca_key).map_err(IssueCertificateError::CaCertificate)?;
        let mut params = subject(&node.name, node.address);
        params.not_before = OffsetDateTime::from(now) - CLOCK_SKEW;
        params.not_after = OffsetDateTime::from(now) + LIFETIME;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&self.0, &issuer)
            .map_err(IssueCertificateError::Sign)?;
        Ok(certificate.pem())
    }
}

impl std::fmt::Debug for KubeletKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KubeletKey(..)")
    }
}

fn subject(name: &NodeName, address: Ipv4Addr) -> CertificateParams {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, format!("system:node:{name}"));
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(address))];
    params
}

#[cfg(test)]
mod tests {
    use rcgen::BasicConstraints;
    use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate, X509CertificationRequest};

    use super::*;
    use crate::render::tests::node;

    #[test]
    fn a_request_names_the_node_and_its_address() {
        let pending = KubeletKey::request(&node().name, node().address);
        let (_, request) = X509CertificationRequest::from_der(&pending.request).unwrap();
        request.verify_signature().unwrap();
        let subject = request.certification_request_info.subject.to_string();
        assert_eq!(subject, "O=system:nodes, CN=system:node:control-plane-0");
        let mut extensions = request.requested_extensions().unwrap();
        let Some(ParsedExtension::SubjectAlternativeName(names)) = extensions.next() else {
            panic!("the first extension is the subject's other name")
        };
        assert_eq!(names.general_names, [GeneralName::IPAddress(&[10, 42, 1, 100])]);
    }

    #[test]
    fn own_certificate_is_signed_by_the_cluster_ca_and_no_ca_itself() {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca.self_signed(&ca_key).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);

        let key = KubeletKey::generate();
        let pem = key.issue(&node(), &ca.pem(), &ca_key.serialize_pem(), now).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
        let (_, ca) = X509Certificate::from_der(ca.der()).unwrap();
        certificate.verify_signature(Some(ca.public_key())).unwrap();
        assert!(!certificate.is_ca());
        assert_eq!(certificate.validity().not_before.timestamp(), 1_800_000_000 - 7200);
    }

    #[test]
    fn a_broken_ca_is_named() {
        let error = KubeletKey::generate()
            .issue(&node(), "", "", SystemTime::UNIX_EPOCH)
            .unwrap_err();
        assert!(matches!(error, IssueCertificateError::CaKey(_)));
    }
}
