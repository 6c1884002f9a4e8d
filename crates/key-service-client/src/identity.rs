use std::sync::Arc;

use cluster_types::Service;
use cluster_types::key_service::KeyServicePublicKey;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

const ALPN: &[u8] = b"h2";

/// The public key that belongs to the seed derived from the master secret.
#[must_use]
pub fn public_key(seed: &[u8; 32]) -> KeyServicePublicKey {
    let key = key_pair(seed);
    let bytes = key.public_key_raw().try_into();
    KeyServicePublicKey::new(bytes.expect("an Ed25519 public key has 32 bytes"))
}

/// The server's side: TLS 1.3 with the key of this seed.
#[must_use]
pub fn server_config(seed: &[u8; 32]) -> Arc<ServerConfig> {
    let key = key_pair(seed);
    let params = CertificateParams::new([Service::Key.name().to_owned()]).expect("a fixed DNS name is valid");
    let certificate = params.self_signed(&key).expect("fixed parameters can be signed");
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider supports TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .expect("the key belongs to the certificate");
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// The caller's side: TLS 1.3 to the holder of this key and no one else.
pub(crate) fn client_config(pinned: KeyServicePublicKey) -> Arc<ClientConfig> {
    let provider = provider();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider supports TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { key: pinned, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn key_pair(seed: &[u8; 32]) -> KeyPair {
    let key = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(seed)
        .expect("every 32 bytes are an Ed25519 seed (RFC 8032)");
    let pkcs8 = key.to_pkcs8v1().expect("an Ed25519 key can be written as PKCS#8");
    KeyPair::try_from(pkcs8.as_ref()).expect("PKCS#8 from the same library can be read")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Accepts a certificate by its public key alone. Names and dates are only the holder's claims.
#[derive(Debug)]
struct Pinned {
    key: KeyServicePublicKey,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (_, certificate) = X509Certificate::from_der(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if *certificate.public_key().subject_public_key.data == *self.key.as_bytes() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_key_matches_rfc_8032() {
        // RFC 8032 section 7.1, test 1.
        let mut seed = [0; 32];
        hex::decode_to_slice(
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            &mut seed,
        )
        .unwrap();
        assert_eq!(
            public_key(&seed).to_string(),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
    }
}
