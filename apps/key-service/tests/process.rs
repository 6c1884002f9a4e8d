//! The key service as a process, with callers whose tokens a real API server issues and reviews.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::path::Path;
use std::time::Duration;

use cluster_types::key_service::AUDIENCE;
use key_derivation::MasterSecret;
use key_service_client::{KeyServiceClient, KeyServiceError, public_key};
use test_services::KeyService;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tonic::Code;

const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";
/// Occurs only in the master secret's file.
const CANARY: &str = "canary-0123456789-canary-01234567";

fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_key-service")).parent().unwrap()
}

fn master_secret() -> MasterSecret {
    let key = zeroize::Zeroizing::new(CANARY.as_bytes().to_vec());
    MasterSecret::new(key, vec![7; 32]).unwrap()
}

async fn start() -> KeyService {
    KeyService::start(programs(), master_secret()).await.unwrap()
}

async fn client(service: &KeyService, account: &str, audience: Option<&str>) -> KeyServiceClient {
    service.client(account, audience).await.unwrap()
}

async fn refusal(client: &KeyServiceClient, id: &str) -> Code {
    match client.data_key(id).await {
        Err(KeyServiceError::Refused(status)) => status.code(),
        other => panic!("{:?}", other.map(|_| "a key")),
    }
}

/// The error names the field and gives the reason.
fn check_invalid<T>(result: Result<T, KeyServiceError>, what: &str) {
    let Err(KeyServiceError::Refused(status)) = result else {
        panic!("not refused: {what}")
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{what}");
    assert!(status.message().starts_with(what), "{}", status.message());
}

#[tokio::test]
async fn callers_get_what_they_may_have_and_every_request_is_recorded() {
    let service = start().await;
    let join_service = client(&service, "join-service", Some(AUDIENCE)).await;

    let expected = service.master_secret().kek().state_disk_key(DISK.parse().unwrap());
    assert_eq!(
        &join_service
            .data_key(DISK)
            .await
            .unwrap_or_else(|error| panic!("{error:?} {}", service.log())),
        expected.expose()
    );
    let expected = service.master_secret().kek().measurement_secret();
    assert_eq!(
        &join_service.data_key("measurementSecret").await.unwrap(),
        expected.expose()
    );
    let (key, salt) = join_service.master_secret("ab".repeat(32)).await.unwrap();
    assert_eq!(
        (key.expose(), salt.as_slice()),
        (service.master_secret().expose_key(), service.master_secret().salt())
    );

    // A token of another pod's service account.
    let other = client(&service, "default", Some(AUDIENCE)).await;
    assert_eq!(refusal(&other, DISK).await, Code::PermissionDenied);
    // The token that every pod has for the API server.
    let misused = client(&service, "join-service", None).await;
    assert_eq!(refusal(&misused, DISK).await, Code::Unauthenticated);
    // No credentials, and invented ones.
    assert_eq!(
        refusal(&service.client_with_token("").unwrap(), DISK).await,
        Code::Unauthenticated
    );
    assert_eq!(
        refusal(&service.client_with_token("a.b.c").unwrap(), DISK).await,
        Code::Unauthenticated
    );
    for reason in ["the request has no usable token", "the token is not authentic"] {
        assert!(service.log().contains(reason), "{reason:?} is not in {}", service.log());
    }
    // A caller that is not authenticated does not learn what is wrong with its request either.
    assert_eq!(
        refusal(&service.client_with_token("a.b.c").unwrap(), "nonsense").await,
        Code::Unauthenticated
    );
    // Keys that no caller may have, and nonsense.
    for id in [
        "keyServiceIdentity",
        "operatorIdentity",
        "",
        "../etc/passwd",
        &DISK.to_uppercase(),
    ] {
        let refused = join_service.data_key(id).await;
        check_invalid(refused, &format!("data_key_id: {id:?} is not a key id"));
    }
    for recipient in ["", "control-plane-0", &"AB".repeat(32)] {
        let refused = join_service.master_secret(recipient.to_owned()).await;
        check_invalid(
            refused,
            &format!("recipient: {recipient:?} is not an attested identity"),
        );
    }

    let audit: Vec<serde_json::Value> = service
        .audit()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let summary: Vec<_> = audit
        .iter()
        .map(|record| (record["key"].as_str().unwrap(), record["decision"].as_str().unwrap()))
        .collect();
    assert_eq!(
        summary,
        [
            (DISK, "granted"),
            ("measurementSecret", "granted"),
            ("masterSecret", "granted"),
            (DISK, "denied")
        ]
    );
    assert_eq!(audit[2]["recipient"], "ab".repeat(32));
    assert!(!service.log().contains(CANARY) && !service.audit().contains(CANARY));
}

#[tokio::test]
async fn no_key_leaves_when_it_cannot_be_recorded() {
    let service = KeyService::start_with_audit_log(programs(), master_secret(), Path::new("/dev/full"))
        .await
        .unwrap();
    let join_service = client(&service, "join-service", Some(AUDIENCE)).await;
    assert_eq!(refusal(&join_service, DISK).await, Code::Unavailable);
    assert!(
        service.log().contains("cannot write the audit record"),
        "{}",
        service.log()
    );
}

#[tokio::test]
async fn a_server_with_another_key_is_not_talked_to() {
    let service = start().await;
    let token = service.cluster().token("join-service", Some(AUDIENCE)).await.unwrap();
    let (path, other) = (service.token_file(&token).unwrap(), public_key(&[1; 32]));
    let client = KeyServiceClient::new(service.address(), other, path).unwrap();
    assert_eq!(refusal(&client, DISK).await, Code::Unavailable);
    assert_eq!(service.audit(), "");
}

#[tokio::test]
async fn one_that_comes_up_late_is_waited_for() {
    let service = start().await;
    let token = service.cluster().token("join-service", Some(AUDIENCE)).await.unwrap();
    let path = service.token_file(&token).unwrap();
    let late = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let address = service.address().to_owned();
    tokio::spawn(async move {
        sleep(Duration::from_millis(1500)).await;
        let (mut caller, _) = TcpListener::bind(late).await.unwrap().accept().await.unwrap();
        let mut service = TcpStream::connect(address).await.unwrap();
        copy_bidirectional(&mut caller, &mut service).await
    });
    let client = KeyServiceClient::new(&late.to_string(), service.public_key(), path).unwrap();
    client.data_key(DISK).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_cleanly() {
    let mut service = start().await;
    let status = tokio::task::block_in_place(|| service.terminate().unwrap());
    assert!(status.success(), "{status}: {}", service.log());
    assert!(service.log().contains("draining after SIGTERM"));
}
