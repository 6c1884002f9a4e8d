use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A folder or an HTTP address that holds a mirror of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorSource {
    /// A folder, served to the nodes by this machine.
    Folder(PathBuf),
    /// The base address, without a slash at its end.
    Http(String),
}

/// A text that is no mirror of Kubernetes.
#[derive(Debug, thiserror::Error)]
pub enum ParseMirrorSourceError {
    /// There is none.
    #[error("is empty: expected a folder or an http address")]
    Empty,
    /// It has the form of an address, but is none we can use.
    #[error(
        "{0:?} is neither a folder nor an address of the form http://<host>[:<port>][/<path>]; a folder of this name is ./{0}"
    )]
    Address(String),
}

impl FromStr for MirrorSource {
    type Err = ParseMirrorSourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match split_scheme(text) {
            _ if text.is_empty() => Err(ParseMirrorSourceError::Empty),
            None => Ok(Self::Folder(text.into())),
            Some(("http" | "https", rest)) if is_address(rest) => Ok(Self::Http(text.trim_end_matches('/').to_owned())),
            Some(_) => Err(ParseMirrorSourceError::Address(text.chars().take(128).collect())),
        }
    }
}

impl fmt::Display for MirrorSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => {
                let folder = folder.display().to_string();
                // Or it would be read back as an address.
                let prefix = split_scheme(&folder).map_or("", |_| "./");
                write!(f, "{prefix}{folder}")
            }
            Self::Http(address) => address.fmt(f),
        }
    }
}

/// What comes before and after `://`, if that is the scheme of an address (RFC 3986 section 3.1). No absolute path begins so.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(plain);
    is_scheme.then_some((scheme, rest))
}

/// Host, port and path; nodes take neither a query nor a password.
fn is_address(rest: &str) -> bool {
    let plain = |c: u8| c.is_ascii_graphic() && !b"?#@\\\"<>".contains(&c);
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address are in brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    rest.bytes().all(plain) && !host.is_empty() && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_addresses_are_told_apart() {
        for (text, expected) in [
            ("mirror", MirrorSource::Folder("mirror".into())),
            ("a b/c:d", MirrorSource::Folder("a b/c:d".into())),
            ("/a://b", MirrorSource::Folder("/a://b".into())),
            ("./ftp://b", MirrorSource::Folder("./ftp://b".into())),
            ("http://host/", MirrorSource::Http("http://host".into())),
            (
                "https://host:443/a/b",
                MirrorSource::Http("https://host:443/a/b".into()),
            ),
            ("http://[::1]:80", MirrorSource::Http("http://[::1]:80".into())),
            ("http://[::1]", MirrorSource::Http("http://[::1]".into())),
        ] {
            assert_eq!(text.parse::<MirrorSource>().unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn addresses_that_nodes_would_refuse_are_refused() {
        for bad in [
            "",
            "ftp://host",
            "file:///folder",
            "://",
            "http://",
            "http:///path",
            "http://:80",
            "http://host:port",
            "http://host:65536",
            "http://user@host",
            "http://host/?query",
            "http://host/#part",
            "http://a host",
            "http://host/\n",
        ] {
            assert!(bad.parse::<MirrorSource>().is_err(), "{bad}");
        }
    }
}
