//! The endpoint on loopback from which nodes learn their names, and from which they fetch components.
//!
//! Nothing it says is trusted by a node, and it holds no secret: of the init secret it knows the hash.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use cluster_types::{NodeName, NodeRole};
use serde::Serialize;
use tokio::fs::File;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio_util::io::ReaderStream;

use crate::error::QemuError;
use crate::folder::{ClusterRecord, NodeRecord, RunFolder};
use crate::mirror::{Public, open_public};
use crate::network::{NAME_SERVER, NODE_CIDR, NODE_INTERFACE};
use crate::proof::ProofKey;

/// The port of the API server in the private network.
const KUBERNETES_PORT: u16 = 6443;
/// How much of a file is read at once, in bytes.
const CHUNK: usize = 256 * 1024;

/// The endpoint cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The run folder contains no cluster.
    #[error("{0} contains no cluster")]
    NoCluster(PathBuf),
    /// The record of the cluster cannot be read.
    #[error(transparent)]
    Record(#[from] QemuError),
    /// The port cannot be listened on.
    #[error("cannot listen on 127.0.0.1:{port}")]
    Serve {
        /// The port on loopback.
        port: u16,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Serves on the recorded port of loopback until the process is ended.
///
/// # Errors
/// When there is no cluster, or it cannot listen on the port.
pub(crate) async fn serve(folder: RunFolder) -> Result<Infallible, MetadataError> {
    let Some(record) = folder.record()? else {
        return Err(MetadataError::NoCluster(folder.path().to_owned()));
    };
    let port = record.metadata_port;
    let failed = |source| MetadataError::Serve { port, source };
    let key = ProofKey::load(&folder.metadata_key())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(failed)?;
    match axum::serve(listener, router(folder, key, port)).await {
        Err(error) => Err(failed(error)),
        Ok(()) => unreachable!("a server without a shutdown signal goes on"),
    }
}

fn router(folder: RunFolder, key: ProofKey, port: u16) -> Router {
    let key = Arc::new(key);
    let prove = async move |Path(challenge): Path<String>| key.answer(port, &challenge);
    Router::new()
        .route("/proof/{challenge}", get(prove))
        .route("/nodes/{name}/self", get(own))
        .route("/nodes/{name}/peers", get(peers))
        .route("/nodes/{name}/endpoint", get(endpoint))
        .route("/nodes/{name}/network", get(network))
        .route("/nodes/{name}/initsecrethash", get(init_secret_hash))
        .route("/nodes/{name}/operatorkey", get(operator_key))
        .route("/mirror/{*path}", get(mirror))
        .with_state(folder)
}

/// Field names of the predecessor.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Instance {
    name: NodeName,
    #[serde(rename = "ProviderID")]
    provider_id: String,
    role: NodeRole,
    #[serde(rename = "VPCIP")]
    address: Ipv4Addr,
}

#[derive(Serialize)]
struct Endpoint {
    host: Ipv4Addr,
    port: u16,
}

impl From<&NodeRecord> for Instance {
    fn from(node: &NodeRecord) -> Self {
        let spec = &node.spec;
        Self {
            name: spec.name.clone(),
            provider_id: format!("qemu:///{}", spec.name),
            role: spec.role,
            address: node.address,
        }
    }
}

async fn own(State(folder): State<RunFolder>, Path(name): Path<String>) -> Result<Json<Instance>, Refusal> {
    let (record, name) = known(&folder, &name)?;
    Ok(Json(Instance::from(&record.nodes[&name])))
}

async fn peers(State(folder): State<RunFolder>, Path(name): Path<String>) -> Result<Json<Vec<Instance>>, Refusal> {
    let (record, _) = known(&folder, &name)?;
    Ok(Json(record.nodes.values().map(Instance::from).collect()))
}

/// The first control plane: there is no load balancer on one machine.
async fn endpoint(State(folder): State<RunFolder>, Path(name): Path<String>) -> Result<Json<Endpoint>, Refusal> {
    let (record, _) = known(&folder, &name)?;
    let first = record
        .nodes
        .values()
        .find(|node| node.spec.role == NodeRole::ControlPlane);
    let host = first.ok_or(Refusal::NotFound)?.address;
    Ok(Json(Endpoint {
        host,
        port: KUBERNETES_PORT,
    }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    cidr: &'static str,
    interface: &'static str,
    name_servers: [Ipv4Addr; 1],
}

async fn network(State(folder): State<RunFolder>, Path(name): Path<String>) -> Result<Json<Network>, Refusal> {
    known(&folder, &name)?;
    Ok(Json(Network {
        cidr: NODE_CIDR,
        interface: NODE_INTERFACE.as_str(),
        name_servers: [NAME_SERVER],
    }))
}

async fn init_secret_hash(State(folder): State<RunFolder>, Path(name): Path<String>) -> Result<String, Refusal> {
    Ok(known(&folder, &name)?.0.init_secret_hash)
}

async fn operator_key(State(folder): State<RunFolder>, Path(name): Path<String>) -> Result<String, Refusal> {
    let operator = known(&folder, &name)?.0.operator.ok_or(Refusal::NotFound)?;
    Ok(operator.to_string())
}

async fn mirror(State(folder): State<RunFolder>, Path(path): Path<String>) -> Result<Response, Refusal> {
    let root = load(&folder)?.mirror.ok_or(Refusal::NotFound)?;
    let public = spawn_blocking(move || open_public(&root, &path)).await;
    match public.expect("opening a file does not panic") {
        None => Err(Refusal::NotFound),
        Some(Public::List(document)) => Ok(document.into_response()),
        Some(Public::File { file, len }) => {
            let body = Body::from_stream(ReaderStream::with_capacity(File::from_std(file), CHUNK));
            Ok(([(header::CONTENT_LENGTH, len)], body).into_response())
        }
    }
}

/// The record as it is now: nodes may have been added since the endpoint was started.
fn load(folder: &RunFolder) -> Result<ClusterRecord, Refusal> {
    folder.record().ok().flatten().ok_or(Refusal::NoRecord)
}

fn known(folder: &RunFolder, name: &str) -> Result<(ClusterRecord, NodeName), Refusal> {
    let record = load(folder)?;
    let name: NodeName = name.parse().map_err(|_| Refusal::NotFound)?;
    if record.nodes.contains_key(&name) {
        Ok((record, name))
    } else {
        Err(Refusal::NotFound)
    }
}

enum Refusal {
    NotFound,
    NoRecord,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND.into_response(),
            Self::NoRecord => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::unix::fs::symlink;

    use cluster_types::OperatorPublicKey;
    use infrastructure::{NodePorts, NodeSpec};

    use super::*;

    struct Server {
        port: u16,
        folder: tempfile::TempDir,
    }

    fn node(role: NodeRole, address: Ipv4Addr) -> (NodeName, NodeRecord) {
        let name: NodeName = format!("{role}-0").parse().unwrap();
        let spec = NodeSpec {
            name: name.clone(),
            role,
            group: String::new(),
            vcpus: 2,
            memory_mib: 2048,
            state_disk_gb: 20,
        };
        let ports = NodePorts {
            bootstrapper: 1,
            kubernetes: 2,
            verify_http: 3,
            verify: 4,
            join: 5,
        };
        (name, NodeRecord { spec, address, ports })
    }

    /// Serves two nodes and a mirror on a free port.
    async fn server() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path().join("run"));
        run.create().unwrap();
        let mirror = folder.path().join("mirror");
        std::fs::create_dir(&mirror).unwrap();
        run.save(&ClusterRecord {
            uid: "a1b2c3d4".to_owned(),
            private_network_port: 1,
            metadata_port: 1,
            init_secret_hash: "ab".repeat(32),
            operator: Some(OperatorPublicKey::new([0xcd; 32])),
            mirror: Some(mirror),
            nodes: BTreeMap::from([
                node(NodeRole::ControlPlane, Ipv4Addr::new(10, 42, 1, 100)),
                node(NodeRole::Worker, Ipv4Addr::new(10, 42, 2, 100)),
            ]),
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let key = ProofKey::from([1; 32]);
        tokio::spawn(async move { axum::serve(listener, router(run, key, port)).await });
        Server { port, folder }
    }

    impl Server {
        fn address(&self) -> String {
            format!("http://127.0.0.1:{}", self.port)
        }

        /// Puts a file into the folder of the mirror.
        fn put(&self, path: &str, content: impl AsRef<[u8]>) {
            let path = self.folder.path().join("mirror").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }

        fn put_list(&self, paths: &[&str]) {
            let hash = "00".repeat(32);
            let components: Vec<_> = paths
                .iter()
                .map(|path| format!(r#"{{"url":"{path}","hash":"sha256:{hash}","install_path":"/{path}"}}"#))
                .collect();
            let components = components.join(",");
            let list = format!(r#"{{"version":"v1","kubernetes_version":"v1.35.4","components":[{components}]}}"#);
            self.put("components.json", list);
        }

        /// Asks for a path as it is: other clients resolve dots in it.
        async fn get_raw(&self, path: &str) -> String {
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let port = self.port;
            let ask = move || {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            };
            spawn_blocking(ask).await.unwrap()
        }

        async fn get(&self, path: &str) -> (u16, String) {
            let response = reqwest::get(format!("{}{path}", self.address())).await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        }
    }

    #[tokio::test]
    async fn answers_as_agreed() {
        let server = server().await;
        let worker = r#"{"Name":"worker-0","ProviderID":"qemu:///worker-0","Role":"Worker","VPCIP":"10.42.2.100"}"#;
        for (path, answer) in [
            ("/nodes/worker-0/self", worker.to_owned()),
            (
                "/nodes/worker-0/endpoint",
                r#"{"host":"10.42.1.100","port":6443}"#.to_owned(),
            ),
            (
                "/nodes/worker-0/network",
                r#"{"cidr":"10.42.0.0/16","interface":"private0","nameServers":["10.0.2.3"]}"#.to_owned(),
            ),
            ("/nodes/worker-0/initsecrethash", "ab".repeat(32)),
            ("/nodes/worker-0/operatorkey", "cd".repeat(32)),
        ] {
            assert_eq!(server.get(path).await, (200, answer), "{path}");
        }
        let (_, peers) = server.get("/nodes/worker-0/peers").await;
        assert!(
            peers.starts_with('[') && peers.contains(worker) && peers.contains("ControlPlane"),
            "{peers}"
        );
    }

    #[tokio::test]
    async fn proves_that_it_is_ours() {
        let server = server().await;
        let port = server.port;
        let known = async |key: [u8; 32]| {
            spawn_blocking(move || ProofKey::from(key).is_known_at(port))
                .await
                .unwrap()
        };
        assert!(known([1; 32]).await);
        assert!(!known([2; 32]).await);
    }

    #[tokio::test]
    async fn what_is_unknown_is_not_found() {
        let server = server().await;
        server.put_list(&["missing"]);
        for path in [
            "/",
            "/nodes/worker-1/self",
            "/nodes/..%2f..%2fetc/self",
            "/nodes/worker-0/other",
            "/mirror/",
            "/mirror/missing",
        ] {
            assert_eq!(server.get(path).await.0, 404, "{path}");
        }
    }

    /// The one who asks is a pod or a local user, and the mirror was made in a workspace.
    #[tokio::test]
    async fn a_secret_beside_the_list_is_not_served() {
        let server = server().await;
        let outside = server.folder.path().join("outside");
        std::fs::write(&outside, "SECRET").unwrap();
        for secret in [
            "constellation-mastersecret.json",
            "constellation-qemu/nodes/worker-0/state.img",
            "bin/unlisted",
            "bin/.kubelet.part",
            ".components.json.new",
        ] {
            server.put(secret, "SECRET");
        }
        server.put("bin/kubelet", "public");
        let mirror = server.folder.path().join("mirror");
        symlink("constellation-mastersecret.json", mirror.join("link")).unwrap();
        symlink(&outside, mirror.join("listed-link")).unwrap();
        symlink("../..", mirror.join("bin/up")).unwrap();
        server.put_list(&["bin/kubelet", "bin", "listed-link", "bin/up/outside"]);
        assert_eq!(server.get("/mirror/bin/kubelet").await, (200, "public".to_owned()));
        for path in [
            "constellation-mastersecret.json",
            "/constellation-mastersecret.json",
            "./constellation-mastersecret.json",
            "%2e/constellation-mastersecret.json",
            "bin/../constellation-mastersecret.json",
            "bin/%2e%2e/constellation-mastersecret.json",
            "bin/kubelet/../../constellation-mastersecret.json",
            "bin%2fkubelet%2f..%2f..%2fconstellation-mastersecret.json",
            "bin/kubelet%00/../../constellation-mastersecret.json",
            "constellation-qemu/nodes/worker-0/state.img",
            "bin/unlisted",
            "bin/.kubelet.part",
            ".components.json.new",
            "link",
            "listed-link",
            "bin",
            "bin/up/outside",
            "../outside",
            "..%2foutside",
            "%2e%2e/outside",
            "bin//kubelet",
            "/bin/kubelet",
        ] {
            let answer = server.get_raw(&format!("/mirror/{path}")).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
            assert!(!answer.contains("SECRET"), "{path}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_folder_without_a_valid_list_serves_nothing() {
        let server = server().await;
        server.put("bin/kubelet", "content");
        for list in [None, Some("SECRET"), Some("{}")] {
            if let Some(list) = list {
                server.put("components.json", list);
            }
            for path in ["/mirror/components.json", "/mirror/bin/kubelet"] {
                assert_eq!(server.get(path).await, (404, String::new()), "{list:?} {path}");
            }
        }
        server.put_list(&["bin/kubelet"]);
        assert!(server.get("/mirror/components.json").await.1.contains("bin/kubelet"));
        assert_eq!(server.get("/mirror/bin/kubelet").await.0, 200);
    }

    #[tokio::test]
    async fn serves_large_files_whole() {
        let server = server().await;
        let content = vec![7; 10_000_000];
        server.put("bin/kubelet", &content);
        server.put_list(&["bin/kubelet"]);
        let response = reqwest::get(format!("{}/mirror/bin/kubelet", server.address()))
            .await
            .unwrap();
        assert_eq!(response.content_length(), Some(10_000_000));
        assert_eq!(response.bytes().await.unwrap(), content);
    }

    #[tokio::test]
    async fn refuses_what_is_too_much_and_goes_on() {
        let server = server().await;
        let long = format!("/nodes/{}/self", "a".repeat(10_000_000));
        let refused = reqwest::get(format!("{}{long}", server.address())).await;
        assert!(refused.is_err() || refused.is_ok_and(|response| !response.status().is_success()));
        let post = reqwest::Client::new().post(format!("{}/nodes/worker-0/self", server.address()));
        let answer = post.body(vec![0; 10_000_000]).send().await;
        assert!(answer.is_err() || answer.is_ok_and(|response| response.status() == 405));
        assert_eq!(server.get("/nodes/worker-0/self").await.0, 200);
    }
}
