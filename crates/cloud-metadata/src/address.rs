use std::fmt;
use std::net::Ipv4Addr;

use cluster_types::Cidr;

/// An address that a node may have: a private one (RFC 1918) that belongs neither to a pod nor to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrivateAddress(Ipv4Addr);

/// An address that no node can have.
#[derive(Debug, thiserror::Error)]
#[error("{0} cannot be a node's address: expected a private one that belongs neither to a pod nor to a Service")]
pub struct NotPrivate(Ipv4Addr);

impl PrivateAddress {
    /// The IPv4 address that it wraps.
    #[must_use]
    pub const fn ip(self) -> Ipv4Addr {
        self.0
    }
}

impl TryFrom<Ipv4Addr> for PrivateAddress {
    type Error = NotPrivate;

    fn try_from(address: Ipv4Addr) -> Result<Self, Self::Error> {
        let of_kubernetes = [Cidr::PODS, Cidr::SERVICES].iter().any(|cidr| cidr.contains(address));
        if address.is_private() && !of_kubernetes {
            Ok(Self(address))
        } else {
            Err(NotPrivate(address))
        }
    }
}

impl fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where nodes reach the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiEndpoint {
    /// Its address on the private network.
    pub host: PrivateAddress,
    /// Its TCP port.
    pub port: u16,
}

impl fmt::Display for ApiEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_private_addresses_of_their_own() {
        let check = |octets: [u8; 4]| PrivateAddress::try_from(Ipv4Addr::from(octets)).is_ok();
        for good in [[10, 42, 1, 100], [192, 168, 0, 1], [172, 31, 0, 1], [10, 245, 0, 1]] {
            assert!(check(good), "{good:?}");
        }
        for bad in [
            [8, 8, 8, 8],
            [127, 0, 0, 1],
            [169, 254, 169, 254],
            [0; 4],
            [255; 4],
            [10, 244, 3, 1],
            [10, 96, 0, 1],
            [10, 111, 255, 255],
        ] {
            assert!(!check(bad), "{bad:?}");
        }
    }
}
