//! The verification service as a process, with a machine of each technology.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::path::Path;
use std::sync::Arc;

use attestation::{Evidence, ExpectedMembership, Nonce, Outcome, Purpose, ReportBinding, UnixTime, Verifiers};
use attested_tls::{Endpoint, HandshakeError, PeerPolicy, channel};
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, Engine};
use grpc_api::verify::GetAttestationRequest;
use grpc_api::verify::api_client::ApiClient;
use test_machines::{Technology, for_each_technology, verifiers};
use test_services::VerificationService;
use tonic::Code;

for_each_technology!(async:
    opening_a_session_verifies_the_node,
    grpc_names_what_is_wrong_with_a_request,
    a_node_of_another_image_is_found_out,
    sessions_for_other_purposes_are_refused,
    http_gives_evidence_over_a_nonce,
    http_names_what_is_wrong_with_a_request,
);

async fn start(technology: &dyn Technology) -> VerificationService {
    let program = Path::new(env!("CARGO_BIN_EXE_verification-service"));
    VerificationService::start(program.parent().unwrap(), technology)
        .await
        .unwrap()
}

async fn get(service: &VerificationService, query: &str) -> (u16, String) {
    let response = reqwest::get(format!("http://{}/{query}", service.http_address()))
        .await
        .unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

fn new_node(technology: &dyn Technology) -> Verifiers {
    verifiers(technology, ExpectedMembership::New)
}

fn endpoint(accepted: Verifiers) -> Endpoint {
    Endpoint::new(None, PeerPolicy::Attested(Arc::new(accepted)))
}

const NOW: UnixTime = UnixTime::from_seconds(1_800_000_000);

async fn opening_a_session_verifies_the_node(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let session = channel(&endpoint(new_node(technology)), Purpose::Verify, service.address())
        .await
        .unwrap();
    assert!(session.node.is_some());

    let nonce = Nonce::generate();
    let request = GetAttestationRequest {
        nonce: nonce.as_bytes().to_vec(),
    };
    let response = ApiClient::new(session.channel)
        .get_attestation(request)
        .await
        .unwrap()
        .into_inner();
    let evidence = Evidence::parse(&response.attestation).unwrap();
    let result = new_node(technology)
        .appraise(&evidence, &ReportBinding::standalone(&nonce), NOW)
        .unwrap();
    assert_eq!(result.outcome(), Outcome::Affirming);
}

async fn grpc_names_what_is_wrong_with_a_request(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let session = channel(&endpoint(new_node(technology)), Purpose::Verify, service.address())
        .await
        .unwrap();
    for length in [0, 31, 33] {
        let request = GetAttestationRequest { nonce: vec![0; length] };
        let mut client = ApiClient::new(session.channel.clone());
        let status = client.get_attestation(request).await.unwrap_err();
        let expected = format!("nonce: the nonce has {length} bytes, expected 32 random bytes");
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, &*expected));
    }
}

async fn a_node_of_another_image_is_found_out(technology: &'static dyn Technology) {
    let machine = technology.boot().unwrap();
    machine.change_image().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_verification-service"));
    let service = VerificationService::start_on(machine, program.parent().unwrap(), technology);
    let service = service.await.unwrap();
    let result = channel(&endpoint(new_node(technology)), Purpose::Verify, service.address()).await;
    assert!(matches!(result, Err(HandshakeError::NotAffirmed(_))));
}

async fn sessions_for_other_purposes_are_refused(technology: &'static dyn Technology) {
    let service = start(technology).await;
    assert!(
        channel(&endpoint(new_node(technology)), Purpose::Join, service.address())
            .await
            .is_err()
    );
}

async fn http_gives_evidence_over_a_nonce(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let nonce = Nonce::generate();
    let query = format!("?nonce={}", BASE64_URL_SAFE.encode(nonce.as_bytes()));
    let (status, body) = get(&service, &query).await;
    assert_eq!(status, 200, "{body}");
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    let evidence = BASE64_STANDARD.decode(document["data"].as_str().unwrap()).unwrap();
    let evidence = Evidence::parse(&evidence).unwrap();
    let appraise = |nonce| new_node(technology).appraise(&evidence, &ReportBinding::standalone(nonce), NOW);
    assert!(appraise(&nonce).is_ok());
    let refused = appraise(&Nonce::generate()).unwrap_err();
    assert!(technology.is_bound_to_something_else(&refused), "{refused:?}");
}

async fn http_names_what_is_wrong_with_a_request(technology: &'static dyn Technology) {
    let service = start(technology).await;
    let good = BASE64_URL_SAFE.encode([0; 32]);
    let short = BASE64_URL_SAFE.encode([0; 31]);
    let long = BASE64_URL_SAFE.encode([0; 33]);
    for (query, reason) in [
        (String::new(), "missing field `nonce`"),
        ("?".into(), "missing field `nonce`"),
        ("?nonce=".into(), "nonce: the nonce has 0 bytes, expected 32"),
        ("?nonce=not-base-64".into(), "nonce: expected base64url with padding"),
        ("?nonce=bm9uY2U".into(), "nonce: expected base64url with padding"),
        ("?nonce=%2B%2F8%3D".into(), "nonce: expected base64url with padding"),
        ("?nonce=%FF".into(), "nonce: expected base64url with padding"),
        ("?nonce=bm9uY2U=".into(), "nonce: the nonce has 5 bytes, expected 32"),
        (format!("?nonce={short}"), "nonce: the nonce has 31 bytes, expected 32"),
        (format!("?nonce={long}"), "nonce: the nonce has 33 bytes, expected 32"),
        (format!("?nonce={good}&nonce={good}"), "duplicate field `nonce`"),
        (
            format!("?nonce={good}&format=json"),
            "unknown field `format`, expected `nonce`",
        ),
    ] {
        let (status, body) = get(&service, &query).await;
        assert_eq!(status, 400, "{query}");
        assert!(body.contains(reason), "{query}: {body}");
        assert_eq!(body.lines().count(), 1, "{query}: {body}");
    }
    assert_eq!(get(&service, &format!("other?nonce={good}")).await.0, 404);
}
