use std::net::IpAddr;

/// Whether the host of a URL is this machine itself: `localhost` and the names below it (RFC 6761 section 6.3), 127.0.0.0/8,
/// `[::1]`, and the unspecified addresses, which connect to the same place. Other machines reach something else there.
#[must_use]
pub fn is_loopback_host(host: &str) -> bool {
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match inside.unwrap_or(host).parse::<IpAddr>() {
        Ok(address) => {
            let address = address.to_canonical();
            address.is_loopback() || address.is_unspecified()
        }
        Err(_) => {
            let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_whole() {
        for host in [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "mirror.localhost",
            "127.0.0.1",
            "127.0.0.11",
            "127.255.255.254",
            "0.0.0.0",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in [
            "localhost.example.com",
            "notlocalhost",
            "127.0.0.1.example.com",
            "128.0.0.1",
            "10.0.2.2",
            "[::2]",
            "",
        ] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }
}
