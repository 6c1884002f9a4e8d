use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Addresses of a cluster's pods or Services, an IPv4 network such as `10.96.0.0/12` (RFC 4632).
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
    /// It has too few addresses.
    #[error("{network} is too small: expected a prefix of at most {longest} bits")]
    TooSmall {
        /// The network as written.
        network: Cidr,
        /// The longest prefix, in bits.
        longest: u8,
    },
}

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
