use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};
use std::str::FromStr;

use crate::NodeName;

/// A server's address: an IP address or a DNS name, and a port. IPv6 addresses are in brackets (RFC 3986 section 3.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort(String);

/// A text that is not a server's address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a server's address: expected <host>:<port>")]
pub struct ParseHostPortError(String);

impl HostPort {
    /// The address as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostPort {
    type Err = ParseHostPortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_address = text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0);
        let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
        let is_name = |(host, port): (&str, &str)| host.parse::<NodeName>().is_ok() && is_port(port);
        if is_address || text.rsplit_once(':').is_some_and(is_name) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseHostPortError(text.chars().take(64).collect()))
        }
    }
}

impl From<SocketAddrV4> for HostPort {
    fn from(address: SocketAddrV4) -> Self {
        Self(address.to_string())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_addresses_or_dns_names() {
        for good in [
            "10.42.1.100:6443",
            "[fd00::1]:6443",
            "key-service.kube-system.svc:9000",
            "localhost:1",
        ] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "10.0.0.1:0",
            "::1:6443",
            "[::1]",
            "[host]:1",
            "*.host:1",
            "a b:1",
            "host:1\nx: y",
            "https://host:1",
            "a[-:1",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }
}
