//! The key service as a process, with callers whose tokens a real API server made and reviews.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cluster_types::Service;
use key_derivation::{Label, MasterSecret};
use key_service_client::{AUDIENCE, KeyServiceClient, KeyServiceError, KeyServicePublicKey};
use kubernetes::Cluster;
use kubernetes::deployment;
use tempfile::TempDir;
use test_cluster::{TestCluster, free_address};
use tonic::Code;

const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";
/// Seen nowhere but in the master secret's file.
const CANARY: &str = "canary-0123456789-canary-01234567";

struct KeyService {
    process: Child,
    folder: TempDir,
    address: String,
    cluster: TestCluster,
    master_secret: MasterSecret,
}

impl KeyService {
    async fn start() -> Self {
        Self::start_with_audit_log(None).await
    }

    async fn start_with_audit_log(audit_log: Option<&Path>) -> Self {
        let cluster = TestCluster::start().await.unwrap();
        let kubeconfig = cluster.kubeconfig("key-service").await.unwrap();
        let admin = Cluster::new(cluster.admin().unwrap());
        for object in deployment::rights(Service::Key) {
            admin.apply(&object).await.unwrap();
        }
        cluster
            .wait_until_allowed("key-service", "create", "authentication.k8s.io", "tokenreviews")
            .await
            .unwrap();
        let folder = TempDir::new().unwrap();
        let key = zeroize::Zeroizing::new(CANARY.as_bytes().to_vec());
        let master_secret = MasterSecret::new(key, vec![7; 32]).unwrap();
        std::fs::write(folder.path().join("secret"), master_secret.to_json().as_bytes()).unwrap();
        let (address, health) = (free_address().unwrap(), free_address().unwrap());
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_key-service"))
            .env("KUBECONFIG", kubeconfig)
            .args([
                "--address",
                &address,
                "--health-address",
                &health,
                "--metrics-address",
                "127.0.0.1:0",
            ])
            .arg("--master-secret")
            .arg(folder.path().join("secret"))
            .arg("--audit-log")
            .arg(audit_log.map_or_else(|| folder.path().join("audit"), PathBuf::from))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut service = Self {
            process,
            folder,
            address,
            cluster,
            master_secret,
        };
        service.wait_until_listening().await;
        service
    }

    async fn wait_until_listening(&mut self) {
        while tokio::net::TcpStream::connect(&self.address).await.is_err() {
            assert!(
                self.process.try_wait().unwrap().is_none(),
                "the key service ended: {}",
                self.log()
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn public_key(&self) -> KeyServicePublicKey {
        KeyServicePublicKey::of_seed(&self.master_secret.kek().derive_array(Label::KeyServiceIdentity))
    }

    /// A client that presents a token of this service account for this audience.
    async fn client(&self, account: &str, audience: Option<&str>) -> KeyServiceClient {
        let token = self.cluster.token(account, audience).await.unwrap();
        self.client_with_token(&token)
    }

    fn client_with_token(&self, token: &str) -> KeyServiceClient {
        let path = tempfile::Builder::new()
            .tempfile_in(self.folder.path())
            .unwrap()
            .into_temp_path()
            .keep()
            .unwrap();
        std::fs::write(&path, token).unwrap();
        KeyServiceClient::new(&self.address, self.public_key(), path).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn audit(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("audit")).unwrap()
    }
}

impl Drop for KeyService {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn refusal(client: &KeyServiceClient, id: &str) -> Code {
    match client.data_key(id).await {
        Err(KeyServiceError::Refused(status)) => status.code(),
        other => panic!("{:?}", other.map(|_| "a key")),
    }
}

/// The error names the field and says why.
fn check_invalid<T>(result: Result<T, KeyServiceError>, what: &str) {
    let Err(KeyServiceError::Refused(status)) = result else {
        panic!("not refused: {what}")
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{what}");
    assert!(status.message().starts_with(what), "{}", status.message());
}

#[tokio::test]
async fn callers_get_what_they_may_have_and_every_request_is_recorded() {
    let service = KeyService::start().await;
    let join_service = service.client("join-service", Some(AUDIENCE)).await;

    let expected = service.master_secret.kek().state_disk_key(DISK.parse().unwrap());
    assert_eq!(
        &join_service
            .data_key(DISK)
            .await
            .unwrap_or_else(|error| panic!("{error:?} {}", service.log())),
        expected.expose()
    );
    let expected = service.master_secret.kek().measurement_secret();
    assert_eq!(
        &join_service.data_key("measurementSecret").await.unwrap(),
        expected.expose()
    );
    let (key, salt) = join_service.master_secret("ab".repeat(32)).await.unwrap();
    assert_eq!(
        (key.expose(), salt.as_slice()),
        (service.master_secret.expose_key(), service.master_secret.salt())
    );

    // A token of another pod's service account.
    let other = service.client("default", Some(AUDIENCE)).await;
    assert_eq!(refusal(&other, DISK).await, Code::PermissionDenied);
    // The token that every pod has for the API server.
    let misused = service.client("join-service", None).await;
    assert_eq!(refusal(&misused, DISK).await, Code::Unauthenticated);
    // No credentials, and invented ones.
    assert_eq!(
        refusal(&service.client_with_token(""), DISK).await,
        Code::Unauthenticated
    );
    assert_eq!(
        refusal(&service.client_with_token("a.b.c"), DISK).await,
        Code::Unauthenticated
    );
    // Who is not authenticated is not told what is wrong with the request either.
    assert_eq!(
        refusal(&service.client_with_token("a.b.c"), "nonsense").await,
        Code::Unauthenticated
    );
    // Keys that are nobody's, and nonsense.
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
    let service = KeyService::start_with_audit_log(Some(Path::new("/dev/full"))).await;
    let join_service = service.client("join-service", Some(AUDIENCE)).await;
    assert_eq!(refusal(&join_service, DISK).await, Code::Unavailable);
    assert!(
        service.log().contains("audit record could not be written"),
        "{}",
        service.log()
    );
}

#[tokio::test]
async fn a_server_with_another_key_is_not_talked_to() {
    let service = KeyService::start().await;
    let token = service.cluster.token("join-service", Some(AUDIENCE)).await.unwrap();
    let path = service.folder.path().join("token");
    std::fs::write(&path, token).unwrap();
    let client = KeyServiceClient::new(&service.address, KeyServicePublicKey::of_seed(&[1; 32]), path).unwrap();
    assert_eq!(refusal(&client, DISK).await, Code::Unavailable);
    assert_eq!(service.audit(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_cleanly() {
    let mut service = KeyService::start().await;
    let pid = service.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let status = tokio::task::block_in_place(|| service.process.wait().unwrap());
    assert!(status.success(), "{status}: {}", service.log());
    assert!(service.log().contains("draining after SIGTERM"));
}
