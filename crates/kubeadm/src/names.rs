use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use cluster_types::NodeName;

/// A text that kubeadm's configuration cannot contain in this place.
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

/// The name of a cluster, as it appears in the contexts of kubeconfig files.
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
