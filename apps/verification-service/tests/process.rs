//! The verification service as a process, with a real software TPM.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use attestation::{Evidence, Nonce, Outcome, Purpose, ReportBinding, Verifier, Verifiers};
use attestation_tpm::{Membership, PcrPolicy, TpmVerifier};
use attestation_variants::qemu_vtpm;
use attested_tls::{Endpoint, HandshakeError, PeerPolicy, channel};
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, Engine};
use grpc_api::verify::GetAttestationRequest;
use grpc_api::verify::api_client::ApiClient;
use measurements::{PcrIndex, PcrValue, ReferenceValues};
use test_services::VerificationService;
use tonic::Code;

async fn start() -> VerificationService {
    let program = Path::new(env!("CARGO_BIN_EXE_verification-service"));
    VerificationService::start(program.parent().unwrap()).await.unwrap()
}

async fn get(service: &VerificationService, query: &str) -> (u16, String) {
    let response = reqwest::get(format!("http://{}/{query}", service.http_address()))
        .await
        .unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// PCR 11 of a software TPM that booted nothing is zero.
fn verifier(pcr_11: PcrValue) -> TpmVerifier {
    let image = ReferenceValues::new("image", BTreeMap::from([(PcrIndex::new(11), pcr_11)]));
    qemu_vtpm::verifier(PcrPolicy::new(image, Membership::New))
}

fn endpoint(pcr_11: PcrValue) -> Endpoint {
    Endpoint::new(None, PeerPolicy::Attested(Arc::new(Verifiers::one(verifier(pcr_11)))))
}

#[tokio::test]
async fn opening_a_session_verifies_the_node() {
    let service = start().await;
    let (grpc, node) = channel(&endpoint(PcrValue::ZERO), Purpose::Verify, service.address())
        .await
        .unwrap();
    assert!(node.is_some());

    let nonce = Nonce::generate();
    let request = GetAttestationRequest {
        nonce: nonce.as_bytes().to_vec(),
    };
    let response = ApiClient::new(grpc.clone())
        .get_attestation(request)
        .await
        .unwrap()
        .into_inner();
    let evidence = Evidence::parse(&response.attestation).unwrap();
    let result = verifier(PcrValue::ZERO)
        .appraise(&evidence, &ReportBinding::standalone(&nonce))
        .unwrap();
    assert_eq!(result.outcome(), Outcome::Affirming);

    for length in [0, 31, 33] {
        let request = GetAttestationRequest { nonce: vec![0; length] };
        let status = ApiClient::new(grpc.clone()).get_attestation(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("nonce"));
    }
}

#[tokio::test]
async fn a_node_of_another_image_is_found_out() {
    let service = start().await;
    let result = channel(&endpoint(PcrValue::new([1; 32])), Purpose::Verify, service.address()).await;
    assert!(matches!(result, Err(HandshakeError::NotAffirmed(_))));
}

#[tokio::test]
async fn sessions_for_other_purposes_are_refused() {
    let service = start().await;
    assert!(
        channel(&endpoint(PcrValue::ZERO), Purpose::Join, service.address())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn http_gives_evidence_over_a_nonce() {
    let service = start().await;
    let nonce = Nonce::generate();
    let query = format!("?nonce={}", BASE64_URL_SAFE.encode(nonce.as_bytes()));
    let (status, body) = get(&service, &query).await;
    assert_eq!(status, 200, "{body}");
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    let evidence = BASE64_STANDARD.decode(document["data"].as_str().unwrap()).unwrap();
    let evidence = Evidence::parse(&evidence).unwrap();
    let verifier = verifier(PcrValue::ZERO);
    assert!(verifier.appraise(&evidence, &ReportBinding::standalone(&nonce)).is_ok());
    assert!(
        verifier
            .appraise(&evidence, &ReportBinding::standalone(&Nonce::generate()))
            .is_err()
    );
}

#[tokio::test]
async fn http_names_what_is_wrong_with_a_request() {
    let service = start().await;
    for query in [
        "",
        "?nonce=",
        "?nonce=not-base-64",
        "?nonce=bm9uY2U",
        "?nonce=%2B%2F8%3D",
        "?nonce=bm9uY2U=",
    ] {
        let (status, body) = get(&service, query).await;
        assert_eq!(status, 400, "{query}");
        assert!(body.contains("nonce"), "{query}: {body}");
    }
    let good = BASE64_URL_SAFE.encode([0; 32]);
    assert_eq!(get(&service, &format!("?nonce={good}&nonce={good}")).await.0, 400);
}
