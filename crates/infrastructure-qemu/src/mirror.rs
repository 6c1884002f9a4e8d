//! Where nodes find a mirror of Kubernetes.

use std::net::Ipv4Addr;

use cluster_types::is_loopback_host;
use infrastructure::MirrorSource;
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
