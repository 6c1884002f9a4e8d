use std::fmt;
use std::net::Ipv4Addr;

/// The private segment between the nodes, `10.42.0.0/16` (docs/interfaces.md).
const SEGMENT: [u8; 2] = [10, 42];

/// A node's address on the private segment, `10.42.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrivateAddress(Ipv4Addr);

/// An address that no node can have.
#[derive(Debug, thiserror::Error)]
#[error("{0} cannot be a node's address: expected one in 10.42.0.0/16")]
pub struct NotPrivate(Ipv4Addr);

impl PrivateAddress {
    /// Length of the segment's network prefix, in bits.
    pub const PREFIX_LEN: u8 = 16;

    /// The address.
    #[must_use]
    pub const fn ip(self) -> Ipv4Addr {
        self.0
    }
}

impl TryFrom<Ipv4Addr> for PrivateAddress {
    type Error = NotPrivate;

    fn try_from(address: Ipv4Addr) -> Result<Self, Self::Error> {
        let octets = address.octets();
        let host = [octets[2], octets[3]];
        // The network's own address and the broadcast address.
        let reserved = host == [0, 0] || host == [255, 255];
        if octets[..2] == SEGMENT && !reserved {
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
    /// Its address on the private segment.
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
    fn only_the_private_segment_has_nodes() {
        let check = |octets: [u8; 4]| PrivateAddress::try_from(Ipv4Addr::from(octets)).is_ok();
        assert!(check([10, 42, 1, 100]));
        assert!(check([10, 42, 255, 0]));
        for other in [
            [10, 42, 0, 0],
            [10, 42, 255, 255],
            [10, 43, 1, 1],
            [127, 0, 0, 1],
            [0; 4],
        ] {
            assert!(!check(other), "{other:?}");
        }
    }
}
