use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use cluster_types::OperatorPublicKey;
use reqwest::{Client, Url};

use crate::fetch::{client, fetch};
use crate::instance::{parse_endpoint, parse_init_secret_hash, parse_instance, parse_operator_key, parse_peers};
use crate::network::parse_network;
use crate::{
    Answer, ApiEndpoint, CloudMetadata, InitSecretHash, Instance, MetadataError, NodeNetwork, ParseMetadataError,
};

/// The file in which the kernel shows the SMBIOS system serial number (DMTF DSP0134, type 1).
pub const BASE_ADDRESS_FILE: &str = "/sys/class/dmi/id/product_serial";

/// Longer addresses are refused, in bytes.
const MAX_ADDRESS_LEN: u64 = 1024;

/// The metadata service of local nodes: plain HTTP on the host's loopback, found through the SMBIOS serial number.
pub struct QemuMetadata {
    client: Client,
    base: Url,
}

/// The machine does not say where its metadata is.
#[derive(Debug, thiserror::Error)]
pub enum FindMetadataError {
    /// The serial number cannot be read.
    #[error("cannot read the SMBIOS serial number")]
    Read(#[from] io::Error),
    /// It is not a metadata service's address.
    #[error("the SMBIOS serial number {0:?} is not of the form http://<address>:<port>/<path>")]
    NotAnAddress(String),
}

impl QemuMetadata {
    /// Finds the service of this machine through a file such as [`BASE_ADDRESS_FILE`].
    ///
    /// # Errors
    /// When the file cannot be read or holds no HTTP address.
    pub fn find(file: &Path) -> Result<Self, FindMetadataError> {
        let mut text = String::new();
        File::open(file)?.take(MAX_ADDRESS_LEN).read_to_string(&mut text)?;
        Self::at(text.trim())
    }

    /// Uses the service at a base address.
    ///
    /// # Errors
    /// When it is not a plain HTTP address.
    pub fn at(address: &str) -> Result<Self, FindMetadataError> {
        let refuse = || FindMetadataError::NotAnAddress(address.chars().take(128).collect());
        let mut base = Url::parse(address).map_err(|_| refuse())?;
        let plain = base.scheme() == "http"
            && base.username().is_empty()
            && base.password().is_none()
            && base.query().is_none()
            && base.fragment().is_none();
        if !plain {
            return Err(refuse());
        }
        // Without the slash, joining would replace the last part.
        let folder = format!("{}/", base.path().trim_end_matches('/'));
        base.set_path(&folder);
        Ok(Self { client: client(), base })
    }

    async fn ask<T>(
        &self,
        request: &'static str,
        parse: impl FnOnce(&[u8]) -> Result<T, ParseMetadataError>,
    ) -> Result<T, MetadataError> {
        let answer = fetch(&self.client, self.below(request), request).await?;
        parse(&answer).map_err(|source| MetadataError::Malformed { request, source })
    }

    fn below(&self, name: &'static str) -> Url {
        self.base.join(name).expect("requests are plain words")
    }
}

impl CloudMetadata for QemuMetadata {
    fn this_node(&self) -> Answer<'_, Instance> {
        Box::pin(self.ask("self", parse_instance))
    }

    fn peers(&self) -> Answer<'_, Vec<Instance>> {
        Box::pin(self.ask("peers", parse_peers))
    }

    fn api_endpoint(&self) -> Answer<'_, ApiEndpoint> {
        Box::pin(self.ask("endpoint", parse_endpoint))
    }

    fn network(&self) -> Answer<'_, NodeNetwork> {
        Box::pin(self.ask("network", parse_network))
    }

    fn init_secret_hash(&self) -> Answer<'_, InitSecretHash> {
        Box::pin(self.ask("initsecrethash", parse_init_secret_hash))
    }

    fn operator_key(&self) -> Answer<'_, OperatorPublicKey> {
        Box::pin(self.ask("operatorkey", parse_operator_key))
    }

    fn mirror(&self) -> String {
        let mirror = self.base.join("/mirror").expect("a plain path can be joined");
        mirror.into()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::fetch::MAX_ANSWER_LEN;

    const WORKER: &str = r#"{"Name":"worker-0","ProviderID":"qemu:///worker-0","Role":"Worker","VPCIP":"10.42.2.100"}"#;

    /// Answers every request with these bytes, and returns the first request's first line.
    async fn service(answer: Vec<u8>) -> (QemuMetadata, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            // A client that has read enough may have closed the connection.
            let _ = stream.write_all(&answer).await;
            String::from_utf8_lossy(&request[..read])
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned()
        });
        let metadata = QemuMetadata::at(&format!("http://{address}/nodes/worker-0")).unwrap();
        (metadata, server)
    }

    fn http(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    async fn check(answer: Vec<u8>) -> Result<Instance, MetadataError> {
        service(answer).await.0.this_node().await
    }

    #[tokio::test]
    async fn a_node_learns_its_name_below_the_base_address() {
        let (metadata, server) = service(http("200 OK", WORKER)).await;
        assert_eq!(metadata.this_node().await.unwrap().name.as_str(), "worker-0");
        assert_eq!(server.await.unwrap(), "GET /nodes/worker-0/self HTTP/1.1");
    }

    /// They are read once per process, so another process does it.
    #[test]
    fn the_systems_certificates_are_not_needed() {
        let same = std::env::current_exe().unwrap();
        let status = std::process::Command::new(same)
            .args(["--exact", "qemu::tests::a_node_learns_its_name_below_the_base_address"])
            .env("SSL_CERT_FILE", "/nonexistent")
            .env("SSL_CERT_DIR", "/nonexistent")
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    #[tokio::test]
    async fn every_request_has_its_path() {
        let peers = format!("[{WORKER}]");
        let (metadata, server) = service(http("200 OK", &peers)).await;
        assert_eq!(metadata.peers().await.unwrap().len(), 1);
        assert!(server.await.unwrap().contains("/peers "));
        let (metadata, server) = service(http("200 OK", r#"{"host":"10.42.1.100","port":6443}"#)).await;
        assert_eq!(metadata.api_endpoint().await.unwrap().port, 6443);
        assert!(server.await.unwrap().contains("/endpoint "));
        let network = r#"{"cidr":"10.42.0.0/16","interface":"private0","nameServers":["10.0.2.3"]}"#;
        let (metadata, server) = service(http("200 OK", network)).await;
        assert_eq!(metadata.network().await.unwrap().cidr().to_string(), "10.42.0.0/16");
        assert!(server.await.unwrap().contains("/network "));
        let (metadata, server) = service(http("200 OK", &"ab".repeat(32))).await;
        assert_eq!(metadata.init_secret_hash().await.unwrap().as_bytes(), &[0xab; 32]);
        assert!(server.await.unwrap().contains("/initsecrethash "));
        let (metadata, server) = service(http("200 OK", &"cd".repeat(32))).await;
        assert_eq!(metadata.operator_key().await.unwrap().as_bytes(), &[0xcd; 32]);
        assert!(server.await.unwrap().contains("/operatorkey "));
        assert!(metadata.mirror().ends_with("/mirror"));
        assert!(!metadata.mirror().contains("/nodes/"));
    }

    #[tokio::test]
    async fn a_wrong_role_is_refused() {
        let answer = http("200 OK", &WORKER.replace("\"Worker\"", "\"Admin\""));
        assert!(matches!(check(answer).await, Err(MetadataError::Malformed { .. })));
    }

    #[tokio::test]
    async fn a_wrong_endpoint_is_refused() {
        let (metadata, _server) = service(http("200 OK", r#"{"host":"198.51.100.7","port":6443}"#)).await;
        assert!(matches!(
            metadata.api_endpoint().await,
            Err(MetadataError::Malformed { .. })
        ));
    }

    #[tokio::test]
    async fn an_empty_answer_is_refused() {
        assert!(matches!(
            check(http("200 OK", "")).await,
            Err(MetadataError::Malformed { .. })
        ));
        assert!(matches!(check(Vec::new()).await, Err(MetadataError::Unreachable(_))));
    }

    #[tokio::test]
    async fn ten_megabytes_are_not_read() {
        let huge = "x".repeat(10 << 20);
        assert!(matches!(
            check(http("200 OK", &huge)).await,
            Err(MetadataError::TooLong { request: "self" })
        ));
        let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(MAX_ANSWER_LEN + 1));
        assert!(matches!(
            check(endless.into_bytes()).await,
            Err(MetadataError::TooLong { .. })
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let metadata = QemuMetadata::at(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        assert!(matches!(
            metadata.this_node().await,
            Err(MetadataError::TimedOut { request: "self" })
        ));
    }

    #[tokio::test]
    async fn errors_and_redirects_are_refused() {
        assert!(matches!(
            check(http("500 Internal Server Error", WORKER)).await,
            Err(MetadataError::Status { status: 500, .. })
        ));
        let redirect = "HTTP/1.1 302 Found\r\nlocation: /self\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(
            check(redirect.into()).await,
            Err(MetadataError::Status { status: 302, .. })
        ));
    }

    #[test]
    fn the_base_address_is_plain_http() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "http://10.0.2.2:41877/nodes/worker-0\n").unwrap();
        assert!(QemuMetadata::find(file.path()).is_ok());
        for bad in [
            "",
            "Not Specified",
            "https://10.0.2.2/",
            "file:///etc/shadow",
            "http://",
            "http://a:b@10.0.2.2/",
            "http://10.0.2.2/?x",
        ] {
            std::fs::write(file.path(), bad).unwrap();
            assert!(QemuMetadata::find(file.path()).is_err(), "{bad}");
        }
    }
}
