use std::path::Path;

use anyhow::Result;
use base64::prelude::{BASE64_STANDARD, Engine};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

/// A certificate authority made for one test, and what it signed.
pub struct Pki {
    ca_certificate: String,
    ca_key: String,
    ca_der: Vec<u8>,
    admin_certificate: String,
    admin_key: String,
}

impl Pki {
    /// Makes everything and writes what the API server reads into the folder.
    pub(crate) fn generate(folder: &Path) -> Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut ca = params("test-cluster");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::from_params(&ca, &ca_key);

        let server_key = KeyPair::generate()?;
        let mut server = params("kube-apiserver");
        server.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_certificate = server.signed_by(&server_key, &issuer)?;

        let admin_key = KeyPair::generate()?;
        let mut admin = params("admin");
        admin
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let admin_certificate = admin.signed_by(&admin_key, &issuer)?;

        let tokens = KeyPair::generate()?;
        let files = [
            ("ca.crt", ca_certificate.pem()),
            ("ca.key", ca_key.serialize_pem()),
            ("apiserver.crt", server_certificate.pem()),
            ("apiserver.key", server_key.serialize_pem()),
            ("sa.key", tokens.serialize_pem()),
            ("sa.pub", tokens.public_key_pem()),
        ];
        for (name, text) in files {
            std::fs::write(folder.join(name), text)?;
        }
        Ok(Self {
            ca_certificate: ca_certificate.pem(),
            ca_key: ca_key.serialize_pem(),
            ca_der: ca_certificate.der().to_vec(),
            admin_certificate: admin_certificate.pem(),
            admin_key: admin_key.serialize_pem(),
        })
    }

    /// The CA's certificate, as PEM.
    #[must_use]
    pub fn ca_certificate(&self) -> &str {
        &self.ca_certificate
    }

    /// The CA's private key, PKCS#8 as PEM.
    #[must_use]
    pub fn ca_key(&self) -> &str {
        &self.ca_key
    }

    pub(crate) fn ca_certificate_der(&self) -> Vec<u8> {
        self.ca_der.clone()
    }

    pub(crate) fn admin_certificate_base64(&self) -> String {
        BASE64_STANDARD.encode(&self.admin_certificate)
    }

    pub(crate) fn admin_key_base64(&self) -> String {
        BASE64_STANDARD.encode(&self.admin_key)
    }
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}
