use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// Another node's clock may be behind ours by this much.
const CLOCK_SKEW: Duration = Duration::from_secs(2 * 60 * 60);
/// The same as every authority that kubeadm makes.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The certificate authority of the certificates with which kubelets serve, and of nothing else: none of them passes for the API
/// server's, and none logs in anywhere.
pub(crate) struct KubeletAuthority {
    pub(crate) certificate: String,
    pub(crate) key: Zeroizing<String>,
}

impl KubeletAuthority {
    /// Generates a P-256 key and a certificate for it.
    pub(crate) fn generate(now: SystemTime) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("P-256 is supported by the provider");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "constellation-kubelet-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        params.not_before = OffsetDateTime::from(now) - CLOCK_SKEW;
        params.not_after = OffsetDateTime::from(now) + LIFETIME;
        let certificate = params.self_signed(&key).expect("fixed parameters can be signed");
        Self {
            certificate: certificate.pem(),
            key: Zeroizing::new(key.serialize_pem()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::PublicKeyData;
    use x509_parser::pem::parse_x509_pem;

    use super::*;

    #[test]
    fn it_signs_end_entities_and_no_further_authorities() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let authority = KubeletAuthority::generate(now);
        let (_, pem) = parse_x509_pem(authority.certificate.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        certificate.verify_signature(None).unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=constellation-kubelet-ca");
        let constraints = certificate.basic_constraints().unwrap().unwrap().value;
        assert!(constraints.ca && constraints.path_len_constraint == Some(0));
        assert_eq!(certificate.validity().not_before.timestamp(), 1_800_000_000 - 7200);
        assert_eq!(
            certificate.validity().not_after.timestamp(),
            1_800_000_000 + 315_360_000
        );
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.key_cert_sign() && usage.digital_signature() && !usage.crl_sign());
        let key = KeyPair::from_pem(&authority.key).unwrap();
        assert_eq!(key.subject_public_key_info(), certificate.public_key().raw);
    }
}
