//! Where nodes find a mirror of Kubernetes, and what of a folder is part of one.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cluster_types::is_loopback_host;
use infrastructure::MirrorSource;
use kubernetes_components::{ComponentList, MAX_DOCUMENT_LEN, MIRROR_DOCUMENT};
use rustix::fs::OFlags;
use url::{Host, Url};

use crate::network::HOST_FROM_GUEST;
use crate::problem::PreflightProblem;

/// The address of a mirror for nodes, to which this machine's loopback has another address.
pub(crate) fn mirror_from_guest(mirror: &MirrorSource, metadata_port: u16) -> Result<String, PreflightProblem> {
    match mirror {
        MirrorSource::Folder(_) => Ok(format!("http://{HOST_FROM_GUEST}:{metadata_port}/mirror")),
        MirrorSource::Http(address) if address.host_str().is_some_and(is_loopback_host) => {
            loopback_from_guest(address).map(|address| MirrorSource::Http(address).to_string())
        }
        MirrorSource::Http(_) => Ok(mirror.to_string()),
    }
}

fn loopback_from_guest(address: &Url) -> Result<Url, PreflightProblem> {
    // QEMU's user network connects guests that dial the host's address to 127.0.0.1.
    let reachable = match address.host() {
        Some(Host::Ipv4(host)) => host == Ipv4Addr::LOCALHOST,
        Some(Host::Domain(name)) => matches!(name, "localhost" | "localhost."),
        Some(Host::Ipv6(_)) | None => false,
    };
    if !reachable {
        return Err(PreflightProblem {
            what: format!(
                "nodes cannot reach the mirror {address}: on this machine's loopback they reach only 127.0.0.1"
            ),
            remedy: "serve it at http://127.0.0.1:<port>, or set `mirror` to its folder".to_owned(),
        });
    }
    if address.scheme() != "http" {
        return Err(PreflightProblem {
            what: format!(
                "nodes cannot verify the mirror {address}: to them this machine is {HOST_FROM_GUEST}, and no certificate \
                 is for that"
            ),
            remedy: "serve it over http (nodes check every file's digest), or set `mirror` to its folder".to_owned(),
        });
    }
    let mut from_guest = address.clone();
    from_guest
        .set_host(Some(HOST_FROM_GUEST))
        .expect("an http address takes any IPv4 host");
    Ok(from_guest)
}

/// What anyone may fetch from a mirror that is a folder.
pub(crate) enum Public {
    /// The list, exactly as it was parsed.
    List(Vec<u8>),
    /// A file that the list names, and its length in bytes.
    File { file: File, len: u64 },
}

/// Opens the list or a file that the list names, by the path that it has there. Anything else in the folder stays private: it can be
/// a workspace, and pods and other users of this machine can ask.
pub(crate) fn open_public(root: &Path, path: &str) -> Option<Public> {
    let document = read_list(root)?;
    let list = ComponentList::from_mirror_document(&document).ok()?;
    if path == MIRROR_DOCUMENT {
        return Some(Public::List(document));
    }
    let mut listed = list
        .components()
        .iter()
        .filter_map(|component| component.url.relative());
    let (file, len) = open_inside(root, listed.find(|listed| *listed == path)?)?;
    Some(Public::File { file, len })
}

fn read_list(root: &Path) -> Option<Vec<u8>> {
    let (file, _) = open_inside(root, MIRROR_DOCUMENT)?;
    let mut document = Vec::new();
    file.take(MAX_DOCUMENT_LEN as u64 + 1).read_to_end(&mut document).ok()?;
    Some(document)
}

/// A regular file and its length, if it is inside the folder whatever links there are.
fn open_inside(root: &Path, path: &str) -> Option<(File, u64)> {
    let root = root.canonicalize().ok()?;
    let path = root.join(path).canonicalize().ok()?;
    if !path.starts_with(&root) {
        return None;
    }
    // Opening a pipe would wait for its writer.
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path).ok()?;
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some((file, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mirror: &str) -> Result<String, PreflightProblem> {
        mirror_from_guest(&mirror.parse().unwrap(), 4000)
    }

    #[test]
    fn nodes_find_folders_and_loopback_at_the_hosts_address() {
        for (mirror, expected) in [
            ("/a/folder", "http://10.0.2.2:4000/mirror"),
            ("http://127.0.0.1:8000/a/", "http://10.0.2.2:8000/a"),
            ("http://localhost", "http://10.0.2.2"),
            ("http://LOCALHOST:80", "http://10.0.2.2"),
            ("http://localhost.:8000", "http://10.0.2.2:8000"),
            ("http://127.1:8000", "http://10.0.2.2:8000"),
        ] {
            assert_eq!(check(mirror).unwrap(), expected, "{mirror}");
        }
    }

    #[test]
    fn other_hosts_stay_as_they_are() {
        for mirror in [
            "http://localhost.example.com",
            "http://127.0.0.1.example.com/a",
            "https://mirror.example.com",
            "http://10.0.0.1:8000",
        ] {
            assert_eq!(check(mirror).unwrap(), mirror);
        }
    }

    #[test]
    fn loopback_that_nodes_cannot_use_is_refused_with_the_reason() {
        for (mirror, reason) in [
            ("http://127.0.0.11", "only 127.0.0.1"),
            ("http://[::1]:8000", "only 127.0.0.1"),
            ("http://[::ffff:127.0.0.1]", "only 127.0.0.1"),
            ("http://0.0.0.0:8000", "only 127.0.0.1"),
            ("http://mirror.localhost", "only 127.0.0.1"),
            ("https://localhost", "certificate"),
            ("https://127.0.0.1:8443", "certificate"),
        ] {
            let problem = check(mirror).unwrap_err();
            assert!(problem.what.contains(reason), "{mirror}: {problem}");
        }
    }
}
