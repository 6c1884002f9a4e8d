use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use cluster_types::NodeName;

/// A text that is not what kubeadm's configuration needs.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseNameError {
    text: String,
    expected: &'static str,
}

impl ParseNameError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self {
            text: text.chars().take(64).collect(),
            expected,
        }
    }
}

/// The name of a cluster, as contexts in kubeconfig files show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterName(String);

impl FromStr for ClusterName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseNameError::new(text, "a cluster name: lower-case letters, digits, '-' and '.'");
        text.parse::<NodeName>().map_err(|_| refuse())?;
        Ok(Self(text.to_owned()))
    }
}

/// A name or address in the API server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertSan(String);

impl FromStr for CertSan {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_dns = |name: &str| name.parse::<NodeName>().is_ok();
        if text.parse::<IpAddr>().is_ok() || is_dns(text.strip_prefix("*.").unwrap_or(text)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseNameError::new(text, "an IP address or a DNS name"))
        }
    }
}

/// An IPv4 network such as `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Network {
    address: Ipv4Addr,
    prefix_len: u8,
}

impl Ipv4Network {
    /// What pods get (docs/interfaces.md). The image keeps packets to these addresses and to those of Services off the host's wires.
    pub const PODS: Self = Self {
        address: Ipv4Addr::new(10, 244, 0, 0),
        prefix_len: 16,
    };
    /// What Services get (docs/interfaces.md).
    pub const SERVICES: Self = Self {
        address: Ipv4Addr::new(10, 96, 0, 0),
        prefix_len: 12,
    };

    /// Whether every address of the other one is in this one.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        let different = self.address.to_bits() ^ other.address.to_bits();
        self.prefix_len <= other.prefix_len && different.leading_zeros() >= self.prefix_len.into()
    }
}

impl FromStr for Ipv4Network {
    type Err = ParseNameError;

    /// Refuses addresses with bits outside the prefix: they are typing errors.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseNameError::new(text, "an IPv4 network like 10.244.0.0/16");
        let (address, prefix_len) = text.split_once('/').ok_or_else(refuse)?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| refuse())?;
        let host_bits = u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
        if (8..=30).contains(&prefix_len) && address.to_bits() & host_bits == 0 {
            Ok(Self { address, prefix_len })
        } else {
            Err(refuse())
        }
    }
}

impl fmt::Display for Ipv4Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

macro_rules! display_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

display_as_text!(ClusterName, CertSan);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_no_host_bits() {
        for good in ["10.244.0.0/16", "10.96.0.0/12", "192.168.1.0/30"] {
            assert_eq!(good.parse::<Ipv4Network>().unwrap().to_string(), good);
        }
        for bad in [
            "10.244.0.1/16",
            "10.244.0.0",
            "10.244.0.0/33",
            "10.0.0.0/7",
            "fd00::/8",
            "",
            "0.0.0.0/0",
        ] {
            assert!(bad.parse::<Ipv4Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_contains_itself_and_its_parts() {
        let contains = |text: &str| Ipv4Network::SERVICES.contains(text.parse().unwrap());
        assert!(contains("10.96.0.0/12"));
        assert!(contains("10.100.0.0/16"));
        assert!(!contains("10.96.0.0/11"));
        assert!(!contains("10.112.0.0/16"));
        assert!(!contains("10.80.0.0/12"));
    }

    #[test]
    fn certificate_names_are_addresses_or_dns_names() {
        for good in ["127.0.0.1", "::1", "api.example.com", "*.example.com"] {
            assert_eq!(good.parse::<CertSan>().unwrap().to_string(), good);
        }
        for bad in ["", "a b", "*", "a\nb: c", "https://x"] {
            assert!(bad.parse::<CertSan>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cluster_names_are_subdomains() {
        assert!("constellation".parse::<ClusterName>().is_ok());
        assert!("".parse::<ClusterName>().is_err());
        assert!("a\"b".parse::<ClusterName>().is_err());
    }
}
