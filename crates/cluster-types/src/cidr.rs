use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Addresses of a cluster's pods, Services or nodes, an IPv4 network such as `10.96.0.0/12` (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr(Ipv4Net);

/// A text that is not a network for pods or Services.
#[derive(Debug, thiserror::Error)]
pub enum ParseCidrError {
    /// It is not of the form.
    #[error("{0:?} is not an IPv4 network: expected a form like 10.96.0.0/12")]
    Form(String),
    /// Bits of the host part are set, which is a typing error.
    #[error("{text:?} has host bits set, expected {network}")]
    HostBits {
        /// The network as written.
        text: String,
        /// The network that was probably meant.
        network: Cidr,
    },
    /// The node image would let packets to these addresses out onto the host's wires.
    #[error("{network} is outside {whole}, the only addresses that the node image keeps off the host's wires")]
    Outside {
        /// The network as written.
        network: Cidr,
        /// The network that it must be a part of.
        whole: Cidr,
    },
    /// Machines outside the cluster may have these addresses.
    #[error("{network} is not a private network: expected a part of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16")]
    NotPrivate {
        /// The network as written.
        network: Cidr,
    },
    /// Pods or Services have some of these addresses, and the node image keeps packets to those off the host's wires.
    #[error("{network} overlaps {other}, which belongs to pods or Services")]
    Overlaps {
        /// The network as written.
        network: Cidr,
        /// The network that it overlaps.
        other: Cidr,
    },
    /// It has too few addresses.
    #[error("{network} is too small: expected a prefix of at most {longest} bits")]
    TooSmall {
        /// The network as written.
        network: Cidr,
        /// The longest prefix, in bits.
        longest: u8,
    },
}

/// RFC 1918 section 3.
const PRIVATE: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
];

impl Cidr {
    /// Addresses of pods (docs/interfaces.md). The image keeps packets to these and to those of Services off the host's
    /// wires (images/root/usr/share/constellation/pod-network.nft).
    pub const PODS: Self = Self(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16));
    /// Addresses of Services. The API server accepts at most 20 bits of them.
    pub const SERVICES: Self = Self(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12));

    /// Parses [`Cidr::PODS`] or a part of it with room for at least one node. Each node gets 8 bits.
    ///
    /// # Errors
    /// When the text is neither.
    pub fn for_pods(text: &str) -> Result<Self, ParseCidrError> {
        parse(text)?.part_of(Self::PODS, 24)
    }

    /// Parses [`Cidr::SERVICES`] or a part of it with at least ten addresses, which kubeadm requires.
    ///
    /// # Errors
    /// When the text is neither.
    pub fn for_services(text: &str) -> Result<Self, ParseCidrError> {
        parse(text)?.part_of(Self::SERVICES, 28)
    }

    /// A private network (RFC 1918) for nodes, without addresses of pods or Services.
    ///
    /// # Errors
    /// When the text is not such a network.
    pub fn for_nodes(text: &str) -> Result<Self, ParseCidrError> {
        let network = parse(text)?;
        if !PRIVATE.iter().any(|private| private.contains(&network.0)) {
            return Err(ParseCidrError::NotPrivate { network });
        }
        for other in [Self::PODS, Self::SERVICES] {
            if network.0.contains(&other.0) || other.0.contains(&network.0) {
                return Err(ParseCidrError::Overlaps { network, other });
            }
        }
        network.part_of(network, 30)
    }

    /// Whether an address is one of these.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    /// Whether a machine in this network can have an address: not that of the network, nor that of all its machines.
    #[must_use]
    pub fn has_host(&self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.0.network() && address != self.0.broadcast()
    }

    /// Bits that all addresses share.
    #[must_use]
    pub const fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }

    fn part_of(self, whole: Self, longest: u8) -> Result<Self, ParseCidrError> {
        let network = self;
        if !whole.0.contains(&network.0) {
            Err(ParseCidrError::Outside { network, whole })
        } else if network.0.prefix_len() > longest {
            Err(ParseCidrError::TooSmall { network, longest })
        } else {
            Ok(network)
        }
    }
}

fn parse(text: &str) -> Result<Cidr, ParseCidrError> {
    let given: Option<Ipv4Net> = text.parse().ok();
    // Leading zeros: some programs read such numbers as octal.
    let given = given.filter(|given| given.to_string() == text);
    let given = given.ok_or_else(|| ParseCidrError::Form(text.chars().take(64).collect()))?;
    let network = Cidr(given.trunc());
    if network.0 == given {
        Ok(network)
    } else {
        let text = text.to_owned();
        Err(ParseCidrError::HostBits { text, network })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_networks_and_nothing_else() {
        for good in ["10.96.0.0/12", "0.0.0.0/0", "10.42.1.100/32"] {
            assert_eq!(parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "10.96.0.0",
            "10.96.0.0/33",
            "10.96.0/12",
            "fd00::/8",
            "10.96.0.0/-1",
            "10.96.0.0/+12",
            "10.96.0.0/012",
            "010.96.0.0/12",
            " 10.96.0.0/12",
            "10.96.0.0/12\n",
        ] {
            assert!(matches!(parse(bad), Err(ParseCidrError::Form(_))), "{bad}");
        }
        assert!(matches!(parse("10.96.0.1/12"), Err(ParseCidrError::HostBits { .. })));
    }

    #[test]
    fn services_have_a_part_of_what_the_image_protects() {
        for good in ["10.96.0.0/12", "10.100.0.0/16", "10.96.0.0/28"] {
            assert_eq!(Cidr::for_services(good).unwrap().to_string(), good);
        }
        for bad in ["10.96.0.0/11", "10.112.0.0/16", "10.80.0.0/12"] {
            let error = Cidr::for_services(bad).unwrap_err();
            assert!(matches!(error, ParseCidrError::Outside { .. }), "{bad}: {error}");
        }
        let error = Cidr::for_services("10.96.0.0/29").unwrap_err();
        assert!(matches!(error, ParseCidrError::TooSmall { .. }), "{error}");
    }

    #[test]
    fn nodes_have_a_private_network_beside_pods_and_services() {
        for good in ["10.42.0.0/16", "192.168.7.0/24", "172.16.0.0/12", "10.0.0.0/30"] {
            assert_eq!(Cidr::for_nodes(good).unwrap().to_string(), good);
        }
        for bad in [
            "0.0.0.0/0",
            "127.0.0.0/8",
            "192.0.2.0/24",
            "169.254.0.0/16",
            "172.0.0.0/8",
        ] {
            let error = Cidr::for_nodes(bad).unwrap_err();
            assert!(matches!(error, ParseCidrError::NotPrivate { .. }), "{bad}: {error}");
        }
        for bad in [
            "10.0.0.0/8",
            "10.244.0.0/16",
            "10.244.7.0/24",
            "10.96.0.0/16",
            "10.96.0.0/12",
        ] {
            let error = Cidr::for_nodes(bad).unwrap_err();
            assert!(matches!(error, ParseCidrError::Overlaps { .. }), "{bad}: {error}");
        }
        let error = Cidr::for_nodes("10.42.0.0/31").unwrap_err();
        assert!(matches!(error, ParseCidrError::TooSmall { .. }), "{error}");
    }

    #[test]
    fn a_network_and_its_broadcast_are_nobodys_addresses() {
        let network = Cidr::for_nodes("10.42.0.0/16").unwrap();
        let check = |octets: [u8; 4]| network.has_host(octets.into());
        assert!(check([10, 42, 1, 100]) && check([10, 42, 255, 0]));
        assert!(!check([10, 42, 0, 0]) && !check([10, 42, 255, 255]) && !check([10, 43, 1, 1]));
    }

    #[test]
    fn pods_have_a_part_of_what_the_image_protects() {
        for good in ["10.244.0.0/16", "10.244.7.0/24"] {
            assert_eq!(Cidr::for_pods(good).unwrap().to_string(), good);
        }
        let error = Cidr::for_pods("10.96.0.0/16").unwrap_err();
        assert!(matches!(error, ParseCidrError::Outside { .. }), "{error}");
        let error = Cidr::for_pods("10.244.0.0/25").unwrap_err();
        assert!(matches!(error, ParseCidrError::TooSmall { .. }), "{error}");
    }
}
