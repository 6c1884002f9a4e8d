use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network such as `10.96.0.0/12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

/// A text that is no IPv4 network.
#[derive(Debug, thiserror::Error)]
pub enum ParseCidrError {
    /// Not of the form.
    #[error("{0:?} is not an IPv4 network: expected a form like 10.96.0.0/12")]
    Form(String),
    /// Bits of the host part are set.
    #[error("{text:?} has host bits set: the network is {network}")]
    HostBits {
        /// What was written.
        text: String,
        /// What was probably meant.
        network: Cidr,
    },
}

impl Cidr {
    /// A constant network.
    ///
    /// # Panics
    /// When the prefix is longer than an address; in a `const` that is a compile error.
    #[must_use]
    pub const fn new(network: Ipv4Addr, prefix: u8) -> Self {
        assert!(prefix <= 32, "an IPv4 address has 32 bits");
        Self { network, prefix }
    }

    /// Bits that are the same in all addresses.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether any address is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let mask = mask(self.prefix.min(other.prefix));
        self.network.to_bits() & mask == other.network.to_bits() & mask
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || ParseCidrError::Form(text.chars().take(64).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(form)?;
        let network = Self::new(Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix);
        if network.network == address {
            Ok(network)
        } else {
            Err(ParseCidrError::HostBits {
                text: text.to_owned(),
                network,
            })
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
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
            "10.96.0.1/12",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn overlap_is_symmetric() {
        let (wide, inside, beside): (Cidr, Cidr, Cidr) = (
            "10.96.0.0/12".parse().unwrap(),
            "10.100.0.0/16".parse().unwrap(),
            "10.112.0.0/16".parse().unwrap(),
        );
        assert!(wide.overlaps(inside) && inside.overlaps(wide));
        assert!(!wide.overlaps(beside) && !beside.overlaps(wide));
    }
}
