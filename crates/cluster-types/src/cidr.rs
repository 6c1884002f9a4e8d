use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;

/// An IPv4 network such as `10.96.0.0/12` (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr(Ipv4Net);

/// A text that is no IPv4 network.
#[derive(Debug, thiserror::Error)]
pub enum ParseCidrError {
    /// Not of the form.
    #[error("{0:?} is not an IPv4 network: expected a form like 10.96.0.0/12")]
    Form(String),
    /// Bits of the host part are set: a typing error.
    #[error("{text:?} has host bits set: the network is {network}")]
    HostBits {
        /// What was written.
        text: String,
        /// What was probably meant.
        network: Cidr,
    },
}

/// A network with addresses that the node image would let out onto the host's wires.
#[derive(Debug, thiserror::Error)]
#[error("{network} is outside {whole}: only these addresses the node image keeps off the host's wires")]
pub struct OutsideError {
    network: Cidr,
    whole: Cidr,
}

impl Cidr {
    /// Addresses of pods (docs/interfaces.md). The image keeps packets to these and to those of Services off the host's
    /// wires (images/root/usr/share/constellation/pod-network.nft).
    pub const PODS: Self = Self(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16));
    /// Addresses of Services.
    pub const SERVICES: Self = Self(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12));

    /// Bits that are the same in all addresses.
    #[must_use]
    pub fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }

    /// This network, if every address of it is in `whole`: [`Cidr::PODS`] or [`Cidr::SERVICES`].
    ///
    /// # Errors
    /// When it has other addresses.
    pub fn within(self, whole: Self) -> Result<Self, OutsideError> {
        if whole.0.contains(&self.0) {
            Ok(self)
        } else {
            Err(OutsideError { network: self, whole })
        }
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let given: Ipv4Net = text
            .parse()
            .map_err(|_| ParseCidrError::Form(text.chars().take(64).collect()))?;
        let network = Self(given.trunc());
        if network.0 == given {
            Ok(network)
        } else {
            let text = text.to_owned();
            Err(ParseCidrError::HostBits { text, network })
        }
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
            assert_eq!(good.parse::<Cidr>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "10.96.0.0",
            "10.96.0.0/33",
            "10.96.0/12",
            "fd00::/8",
            "10.96.0.0/-1",
            "10.96.0.0/+12",
            " 10.96.0.0/12",
            "10.96.0.0/12\n",
            "10.96.0.1/12",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_is_within_itself_and_what_it_is_a_part_of() {
        let is_within = |text: &str| text.parse::<Cidr>().unwrap().within(Cidr::SERVICES).is_ok();
        assert!(is_within("10.96.0.0/12"));
        assert!(is_within("10.100.0.0/16"));
        assert!(!is_within("10.96.0.0/11"));
        assert!(!is_within("10.112.0.0/16"));
        assert!(!is_within("10.80.0.0/12"));
    }
}
