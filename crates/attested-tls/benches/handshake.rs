//! What a session costs: attested handshakes against plain mutual TLS 1.3 handshakes, in the same run on one core.
//!
//! Evidence is signed by a key in this process, so that the figures are ours and not a TPM's.

#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark prints its figures"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attestation::{AttestError, Attester, Evidence, Nonce, Purpose, ReportBinding, TrustBasis, Verifier, Verifiers};
use attestation_tpm::{Membership, PcrPolicy, TpmEvidence, TpmVerifier};
use attested_tls::{Endpoint, PeerPolicy};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use cluster_types::Variant;
use measurements::{Digest, PcrIndex, PcrValue, PcrValues, ReferenceValues};
use rcgen::{CertificateParams, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::duplex;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const ROUNDS: usize = 400;
const WARM_UP: usize = 20;

/// Answers like a TPM that a lying host runs, without the time a TPM takes.
struct InProcessAttester(EcdsaKeyPair);

impl Attester for InProcessAttester {
    fn variant(&self) -> Variant {
        Variant::QemuVtpm
    }

    fn attest(&self, binding: &ReportBinding) -> Result<Evidence, AttestError> {
        let pcrs: PcrValues = (0..16).map(|index| (PcrIndex::new(index), PcrValue::ZERO)).collect();
        let attest = attest_bytes(&pcrs, binding);
        let signature = self
            .0
            .sign(&SystemRandom::new(), &attest)
            .expect("signing in memory does not fail");
        let (r, s) = signature.as_ref().split_at(32);
        let signature = [&[0x00, 0x18, 0x00, 0x0B][..], &sized(r), &sized(s)].concat();
        let body = TpmEvidence {
            key: public_area(&self.0),
            attest,
            signature,
            pcrs,
        }
        .encode();
        Ok(Evidence {
            variant: Variant::QemuVtpm,
            body,
        })
    }
}

/// `TPMS_ATTEST` of a quote (TPM 2.0 part 2, section 10.12.8).
fn attest_bytes(pcrs: &PcrValues, binding: &ReportBinding) -> Vec<u8> {
    let values: Vec<u8> = pcrs.values().flat_map(|value| *value.as_bytes()).collect();
    [
        &[0xFF, 0x54, 0x43, 0x47, 0x80, 0x18][..],
        &sized(&[]),
        &sized(binding.qualifying_data()),
        &[0; 17],
        &[0; 8],
        &[0, 0, 0, 1, 0x00, 0x0B, 3, 0xFF, 0xFF, 0x00],
        &sized(Digest::of(&values).as_bytes()),
    ]
    .concat()
}

/// `TPMT_PUBLIC` of an attestation key (TPM 2.0 part 2, section 12.2.4).
fn public_area(key: &EcdsaKeyPair) -> Vec<u8> {
    let point = key.public_key().as_ref();
    let head = [0x00, 0x23, 0x00, 0x0B, 0x00, 0x05, 0x00, 0x72];
    let parameters = [0x00, 0x10, 0x00, 0x18, 0x00, 0x0B, 0x00, 0x03, 0x00, 0x10];
    [
        &head[..],
        &sized(&[]),
        &parameters,
        &sized(&point[1..33]),
        &sized(&point[33..]),
    ]
    .concat()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("short");
    [&length.to_be_bytes()[..], bytes].concat()
}

fn attester() -> Arc<InProcessAttester> {
    Arc::new(InProcessAttester(
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("P-256 is supported"),
    ))
}

fn verifier() -> TpmVerifier {
    let image = ReferenceValues::new("image", BTreeMap::from([(PcrIndex::new(11), PcrValue::ZERO)]));
    TpmVerifier::new(
        Variant::QemuVtpm,
        TrustBasis::HostSoftware,
        PcrPolicy::new(image, Membership::New),
    )
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let plain = Figures::of("mutual TLS 1.3", plain_handshakes().await);
    let attested = Figures::of("attested, both sides", attested_handshakes().await);
    let appraisals = Figures::of("appraisal of one quote", appraisals());
    println!("{:<24} {:>10} {:>10} {:>12}", "", "p50", "p99", "per s, core");
    for figures in [&plain, &attested, &appraisals] {
        figures.print();
    }
    let ratio = attested.p50.as_secs_f64() / plain.p50.as_secs_f64();
    println!("attested / mutual TLS    {ratio:>9.2}x  (both ends of a session on one core)");
}

async fn attested_handshakes() -> Vec<Duration> {
    let peer = || PeerPolicy::Attested(Arc::new(Verifiers::one(verifier())));
    let client = Endpoint::new(Some(attester()), peer());
    let server = Endpoint::new(Some(attester()), peer());
    measure(async || {
        let (near, far) = duplex(64 * 1024);
        let purposes = [Purpose::Join];
        let (near, far) = tokio::join!(client.connect(Purpose::Join, near), server.accept(&purposes, far));
        near.expect("the client attests");
        far.expect("the server attests");
    })
    .await
}

async fn plain_handshakes() -> Vec<Duration> {
    let (client, server) = plain_configs();
    measure(async || {
        let (near, far) = duplex(64 * 1024);
        let name = ServerName::try_from("peer").expect("a DNS name");
        let connect = TlsConnector::from(client.clone()).connect(name, near);
        let (near, far) = tokio::join!(connect, TlsAcceptor::from(server.clone()).accept(far));
        near.expect("the client connects");
        far.expect("the server accepts");
    })
    .await
}

fn plain_configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("P-256 is supported");
    let params = CertificateParams::new(["peer".to_owned()]).expect("a DNS name");
    let certificate = params.self_signed(&key).expect("fixed parameters");
    let chain = vec![certificate.der().clone()];
    let key = || PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("a certificate");
    let roots = Arc::new(roots);
    let versions = [&rustls::version::TLS13];
    let client_verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .expect("roots");
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .and_then(|config| {
            config
                .with_client_cert_verifier(client_verifier)
                .with_single_cert(chain.clone(), key())
        })
        .expect("a server configuration");
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .and_then(|config| config.with_root_certificates(roots).with_client_auth_cert(chain, key()))
        .expect("a client configuration");
    client.resumption = rustls::client::Resumption::disabled();
    (Arc::new(client), Arc::new(server))
}

fn appraisals() -> Vec<Duration> {
    let (attester, verifier) = (attester(), verifier());
    let binding = ReportBinding::standalone(&Nonce::generate());
    let evidence = attester.attest(&binding).expect("signing in memory");
    (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            verifier.appraise(&evidence, &binding).expect("good evidence");
            start.elapsed()
        })
        .collect()
}

async fn measure(mut handshake: impl AsyncFnMut()) -> Vec<Duration> {
    for _ in 0..WARM_UP {
        handshake().await;
    }
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        handshake().await;
        times.push(start.elapsed());
    }
    times
}

struct Figures {
    name: &'static str,
    p50: Duration,
    p99: Duration,
    per_second: f64,
}

impl Figures {
    fn of(name: &'static str, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let total: Duration = times.iter().sum();
        let at = |percent: usize| times[times.len() * percent / 100];
        Self {
            name,
            p50: at(50),
            p99: at(99),
            per_second: times.len() as f64 / total.as_secs_f64(),
        }
    }

    fn print(&self) {
        let us = |duration: Duration| format!("{} us", duration.as_micros());
        println!(
            "{:<24} {:>10} {:>10} {:>12.0}",
            self.name,
            us(self.p50),
            us(self.p99),
            self.per_second
        );
    }
}
