use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

/// A folder or an HTTP address that holds a mirror of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorSource {
    /// A folder, served to the nodes by this machine.
    Folder(PathBuf),
    /// The base address, whose path ends with a slash.
    Http(Url),
}

/// A text that is not a mirror of Kubernetes.
#[derive(Debug, thiserror::Error)]
pub enum ParseMirrorSourceError {
    /// There is none.
    #[error("is empty: expected a folder or an http(s) address")]
    Empty,
    /// It has the form of an address, but is none we can use.
    #[error(
        "{0:?} is neither a folder nor an address of the form http(s)://<host>[:<port>][/<path>]; to use a folder with \
         this name, write ./{0}"
    )]
    Address(String),
}

impl FromStr for MirrorSource {
    type Err = ParseMirrorSourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match split_scheme(text) {
            _ if text.is_empty() => Err(ParseMirrorSourceError::Empty),
            None => Ok(Self::Folder(text.into())),
            Some((_, rest)) => parse_address(text, rest)
                .map(Self::Http)
                .ok_or_else(|| ParseMirrorSourceError::Address(text.chars().take(128).collect())),
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
            Self::Http(address) => f.write_str(address.as_str().trim_end_matches('/')),
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
fn parse_address(text: &str, rest: &str) -> Option<Url> {
    // A URL parser forgives what a reader of the configuration would see differently: spaces, backslashes, a missing host.
    let plain = |c: u8| c.is_ascii_graphic() && !b"?#@\\\"<>".contains(&c);
    if rest.starts_with('/') || !rest.bytes().all(plain) {
        return None;
    }
    let mut address = Url::parse(text).ok()?;
    if !matches!(address.scheme(), "http" | "https") {
        return None;
    }
    // Without the slash, what is joined to it would take the place of its last part.
    let folder = format!("{}/", address.path().trim_end_matches('/'));
    address.set_path(&folder);
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_addresses_are_told_apart() {
        for folder in ["mirror", "a b/c:d", "/a://b", "./ftp://b"] {
            assert_eq!(
                folder.parse::<MirrorSource>().unwrap(),
                MirrorSource::Folder(folder.into())
            );
        }
        for (text, normal) in [
            ("http://host/", "http://host"),
            ("https://host:443/a/b", "https://host/a/b"),
            ("http://HOST:80/a/", "http://host/a"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://127.1/", "http://127.0.0.1"),
        ] {
            let source: MirrorSource = text.parse().unwrap();
            assert_eq!(source.to_string(), normal);
            assert!(
                matches!(source, MirrorSource::Http(address) if address.path().ends_with('/')),
                "{text}"
            );
        }
    }

    #[test]
    fn addresses_that_nodes_would_refuse_are_refused() {
        for bad in [
            "",
            "ftp://host",
            "file:///folder",
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
