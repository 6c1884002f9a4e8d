//! Installing from a mirror: what is refused, and what a crash leaves behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use component_installer::{ComponentMirror, InstallError, Installer, PrefetchError};
use digest::Digest;
use download::DownloadError;
use flate2::Compression;
use flate2::write::GzEncoder;
use kubernetes_components::{Component, ComponentList, MAX_DOCUMENT_LEN, MIRROR_DOCUMENT};
use tempfile::TempDir;

struct TargetNode {
    folder: TempDir,
}

impl TargetNode {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn mirror(&self) -> ComponentMirror {
        ComponentMirror::Folder(self.path("mirror"))
    }

    fn publish(&self, name: &str, content: &[u8]) {
        let path = self.path("mirror").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// What the mirror claims to have.
    fn offer(&self, components: Vec<Component>) {
        let list = ComponentList::new("v1.35.4".parse().unwrap(), components).unwrap();
        self.publish(MIRROR_DOCUMENT, &list.to_mirror_document());
    }

    async fn prefetch(&self) -> Result<(), PrefetchError> {
        self.installer().prefetch(&self.mirror(), ComponentList::clone).await
    }

    fn installer(&self) -> Installer {
        Installer::new(self.path("root"), self.path("root/run/state/components"))
    }

    async fn check(&self, components: Vec<Component>, mirror: &ComponentMirror) -> Result<(), InstallError> {
        let list = ComponentList::new("v1.35.4".parse().unwrap(), components).unwrap();
        self.installer().install(&list, mirror).await
    }
}

fn component(url: &str, content: &[u8], install_path: &str) -> Component {
    Component {
        url: url.parse().unwrap(),
        hash: Digest::of(content),
        install_path: install_path.parse().unwrap(),
        extract: false,
    }
}

fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    tar.append_data(&mut header, name, content).unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}

/// Serves one connection after the other, each with the next answer; the last answer is repeated.
fn server(answers: Vec<Vec<u8>>) -> (ComponentMirror, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("http://{}/mirror", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let number = counter.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(&answers[number.min(answers.len() - 1)]);
        }
    });
    (mirror, requests)
}

/// The address of a server that a node must not contact, and how often it was contacted.
fn elsewhere() -> (String, Arc<AtomicUsize>) {
    let (server, requests) = server(vec![http("200 OK", b"kubelet")]);
    let ComponentMirror::Address(address) = server else {
        panic!("{server:?}")
    };
    (address.into(), requests)
}

fn http(status: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

#[tokio::test]
async fn programs_and_archives_get_to_their_places() {
    let node = TargetNode::new();
    let plugins = archive("./bridge", b"plugin");
    node.publish("bin/kubelet", b"kubelet");
    node.publish("cni.tgz", &plugins);
    let cni = Component {
        extract: true,
        ..component("cni.tgz", &plugins, "/opt/cni/bin")
    };
    let kubelet = component("bin/kubelet", b"kubelet", "/run/state/bin/kubelet");
    node.check(vec![kubelet, cni], &node.mirror()).await.unwrap();
    for (name, content) in [("run/state/bin/kubelet", "kubelet"), ("opt/cni/bin/bridge", "plugin")] {
        let path = node.path("root").join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o555);
    }
    assert!(is_empty(&node.path("root/run/state/components")));
}

#[tokio::test]
async fn what_was_changed_of_an_archive_is_replaced_without_a_mirror() {
    let node = TargetNode::new();
    let plugins = archive("./bridge", b"plugin");
    node.publish("cni.tgz", &plugins);
    let list = || {
        let cni = component("cni.tgz", &plugins, "/opt/cni/bin");
        vec![Component { extract: true, ..cni }]
    };
    node.check(list(), &node.mirror()).await.unwrap();
    fs::remove_dir_all(node.path("mirror")).unwrap();
    let bridge = node.path("root/opt/cni/bin/bridge");
    fs::remove_file(&bridge).unwrap();
    fs::write(&bridge, b"evil").unwrap();
    node.check(list(), &node.mirror()).await.unwrap();
    assert_eq!(fs::read(&bridge).unwrap(), b"plugin");

    // One of another release goes.
    let other = node.path("root/run/state/components.archives/other");
    fs::write(&other, b"other").unwrap();
    node.check(list(), &node.mirror()).await.unwrap();
    assert!(!other.exists());

    // An archive that was changed is fetched again.
    let archives = node.path("root/run/state/components.archives");
    for kept in fs::read_dir(&archives).unwrap() {
        let kept = kept.unwrap().path();
        fs::remove_file(&kept).unwrap();
        fs::write(&kept, archive("./bridge", b"evil")).unwrap();
    }
    assert!(node.check(list(), &node.mirror()).await.is_err());
    assert_eq!(fs::read(&bridge).unwrap(), b"plugin");
}

#[tokio::test]
async fn one_wrong_hash_and_nothing_is_installed() {
    let node = TargetNode::new();
    node.publish("bin/kubeadm", b"kubeadm");
    node.publish("bin/kubelet", b"evil");
    let result = node
        .check(
            vec![
                component("bin/kubeadm", b"kubeadm", "/run/state/bin/kubeadm"),
                component("bin/kubelet", b"kubelet", "/run/state/bin/kubelet"),
            ],
            &node.mirror(),
        )
        .await;
    let Err(InstallError::Fetch { url, source }) = result else {
        panic!("{result:?}")
    };
    assert_eq!(url, "bin/kubelet");
    assert!(matches!(source, DownloadError::Digest { .. }));
    assert!(is_empty(&node.path("root/run/state/bin")));
}

#[tokio::test]
async fn what_is_installed_is_not_fetched_again_and_what_was_changed_is() {
    let node = TargetNode::new();
    node.publish("kubelet", b"kubelet");
    let list = || vec![component("kubelet", b"kubelet", "/run/state/bin/kubelet")];
    node.check(list(), &node.mirror()).await.unwrap();
    fs::remove_dir_all(node.path("mirror")).unwrap();
    node.check(list(), &node.mirror()).await.unwrap();

    let installed = node.path("root/run/state/bin/kubelet");
    fs::remove_file(&installed).unwrap();
    fs::write(&installed, b"evil").unwrap();
    assert!(node.check(list(), &node.mirror()).await.is_err());
    node.publish("kubelet", b"kubelet");
    node.check(list(), &node.mirror()).await.unwrap();
    assert_eq!(fs::read(&installed).unwrap(), b"kubelet");
}

#[tokio::test]
async fn a_crash_leaves_what_was_fetched_and_no_partial_files() {
    let node = TargetNode::new();
    node.publish("one", b"one");
    let one = || component("one", b"one", "/run/state/bin/one");
    let two = || component("two", b"two", "/run/state/bin/two");
    assert!(node.check(vec![one(), two()], &node.mirror()).await.is_err());
    // A partial file of a process that was killed.
    fs::write(node.path("root/run/state/components/.fetching-abc"), b"hal").unwrap();
    node.publish("two", b"two");
    node.check(vec![one(), two()], &node.mirror()).await.unwrap();
    assert!(is_empty(&node.path("root/run/state/components")));
}

#[tokio::test]
async fn what_was_fetched_in_advance_is_not_fetched_again() {
    let node = TargetNode::new();
    node.publish("kubelet", b"kubelet");
    let kubelet = component("kubelet", b"kubelet", "/run/state/bin/kubelet");
    node.offer(vec![kubelet.clone()]);
    node.prefetch().await.unwrap();
    fs::remove_dir_all(node.path("mirror")).unwrap();
    node.check(vec![kubelet], &node.mirror()).await.unwrap();
    assert_eq!(fs::read(node.path("root/run/state/bin/kubelet")).unwrap(), b"kubelet");
}

/// Nothing vouches for the mirror's own list: what it lies about is fetched, but never installed, and removed afterwards.
#[tokio::test]
async fn a_mirror_that_lies_about_what_it_has_gets_nothing_installed() {
    let node = TargetNode::new();
    node.publish("kubelet", b"evil");
    node.offer(vec![component("kubelet", b"evil", "/run/state/bin/kubelet")]);
    node.prefetch().await.unwrap();
    assert!(is_empty(&node.path("root/run/state/bin")));

    let kubelet = component("kubelet", b"kubelet", "/run/state/bin/kubelet");
    assert!(node.check(vec![kubelet.clone()], &node.mirror()).await.is_err());
    node.publish("kubelet", b"kubelet");
    node.check(vec![kubelet], &node.mirror()).await.unwrap();
    assert_eq!(fs::read(node.path("root/run/state/bin/kubelet")).unwrap(), b"kubelet");
    assert!(is_empty(&node.path("root/run/state/components")));
}

/// A path that never ends to read, and an address that would answer.
#[tokio::test]
async fn a_mirror_does_not_choose_what_a_node_looks_at() {
    let node = TargetNode::new();
    let (elsewhere, requests) = elsewhere();
    node.publish("zero", b"zero");
    node.offer(vec![
        component("zero", b"zero", "/dev/zero"),
        component(&elsewhere, b"kubelet", "/run/state/bin/kubelet"),
    ]);
    std::os::unix::fs::symlink("/dev", node.path("dev")).unwrap();
    let installer = Installer::new(node.path(""), node.path("components"));
    installer.prefetch(&node.mirror(), ComponentList::clone).await.unwrap();
    assert_eq!(requests.load(Ordering::SeqCst), 0);
    assert_eq!(fs::read_dir(node.path("components")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_mirror_does_not_send_a_node_elsewhere() {
    let node = TargetNode::new();
    let (elsewhere, requests) = elsewhere();
    let redirect =
        format!("HTTP/1.1 302 Found\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let (mirror, _) = server(vec![redirect.into_bytes()]);
    let result = node.installer().prefetch(&mirror, ComponentList::clone).await;
    assert!(
        matches!(result, Err(PrefetchError::Fetch(DownloadError::Status(302)))),
        "{result:?}"
    );
    assert_eq!(requests.load(Ordering::SeqCst), 0);
}

/// Files that no list names may have filled the disk.
#[tokio::test]
async fn what_was_fetched_in_advance_and_is_not_wanted_can_be_removed() {
    let node = TargetNode::new();
    let (kubelet, evil) = (
        component("kubelet", b"kubelet", "/run/state/bin/kubelet"),
        component("evil", b"evil", "/run/state/bin/evil"),
    );
    let list = ComponentList::new("v1.35.4".parse().unwrap(), vec![kubelet.clone()]).unwrap();
    node.installer().keep_only(&list).unwrap();
    node.publish("kubelet", b"kubelet");
    node.publish("evil", b"evil");
    node.offer(vec![kubelet, evil]);
    node.prefetch().await.unwrap();

    let count = || fs::read_dir(node.path("root/run/state/components")).unwrap().count();
    assert_eq!(count(), 2);
    node.installer().keep_only(&list).unwrap();
    assert_eq!(count(), 1);
    fs::remove_dir_all(node.path("mirror")).unwrap();
    node.installer().install(&list, &node.mirror()).await.unwrap();
}

#[tokio::test]
async fn a_list_that_is_none_is_refused() {
    for list in [&b""[..], b"{}"] {
        let node = TargetNode::new();
        node.publish(MIRROR_DOCUMENT, list);
        assert!(matches!(node.prefetch().await, Err(PrefetchError::List(_))));
    }
}

#[tokio::test]
async fn a_list_that_is_too_long_is_refused() {
    let node = TargetNode::new();
    node.publish("kubelet", b"kubelet");
    let components = vec![component("kubelet", b"kubelet", "/run/state/bin/kubelet")];
    let list = ComponentList::new("v1.35.4".parse().unwrap(), components).unwrap();
    let mut document = list.to_mirror_document();
    for (length, fits) in [(MAX_DOCUMENT_LEN, true), (MAX_DOCUMENT_LEN + 1, false)] {
        document.resize(length, b' ');
        node.publish(MIRROR_DOCUMENT, &document);
        let (address, _) = server(vec![http("200 OK", &document), http("200 OK", b"kubelet")]);
        for mirror in [node.mirror(), address] {
            let result = node.installer().prefetch(&mirror, ComponentList::clone).await;
            match result {
                Ok(()) => assert!(fits),
                Err(PrefetchError::Fetch(DownloadError::TooLong(_))) => assert!(!fits),
                Err(error) => panic!("{length}: {error:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again() {
    let node = TargetNode::new();
    let (mirror, requests) = server(vec![http("503 Service Unavailable", b""), http("200 OK", b"kubelet")]);
    node.check(vec![component("kubelet", b"kubelet", "/bin/kubelet")], &mirror)
        .await
        .unwrap();
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_missing_file_and_a_wrong_file_are_asked_for_once() {
    for answer in [http("404 Not Found", b""), http("200 OK", b"evil")] {
        let node = TargetNode::new();
        let (mirror, requests) = server(vec![answer]);
        let result = node
            .check(vec![component("kubelet", b"kubelet", "/bin/kubelet")], &mirror)
            .await;
        assert!(matches!(result, Err(InstallError::Fetch { .. })));
        assert_eq!(requests.load(Ordering::SeqCst), 1);
    }
}
