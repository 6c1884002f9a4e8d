use std::fmt;
use std::str::FromStr;

use digest::Digest;
use serde::{Deserialize, Serialize};

/// One file that a node fetches, checks and installs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Where it is fetched from.
    pub url: ComponentUrl,
    /// The hash it must have to be installed.
    #[serde(with = "digest::oci")]
    pub hash: Digest,
    /// The file to install it as, or the folder to unpack it to.
    pub install_path: InstallPath,
    /// Whether it is a gzipped tar file to unpack.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extract: bool,
}

/// A component's location: an HTTP address, or a path below the root of the mirror that lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ComponentUrl(String);

/// A text that is not a component URL.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is neither an http(s) URL nor a relative path without '..'")]
pub struct ParseComponentUrlError(String);

impl ComponentUrl {
    /// The path below the mirror's root, if it is a path.
    #[must_use]
    pub fn relative(&self) -> Option<&str> {
        (!is_http(&self.0)).then_some(&self.0)
    }

    /// The text as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ComponentUrl {
    type Err = ParseComponentUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let printable = text.len() <= MAX_TEXT_LEN && text.bytes().all(|c| c.is_ascii_graphic());
        // With a colon, "file:x" would be a relative path that some client takes for a URL with a scheme.
        if printable && (is_http(text) || (is_normal(text) && !text.contains([':', '\\', '%', '?', '#']))) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseComponentUrlError(shorten(text)))
        }
    }
}

/// An absolute path on a node, in normal form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstallPath(String);

/// A text that is not an absolute path in normal form.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an absolute path without '.', '..' and empty parts")]
pub struct ParseInstallPathError(String);

impl InstallPath {
    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstallPath {
    type Err = ParseInstallPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inside = text
            .strip_prefix('/')
            .filter(|_| text.len() <= MAX_TEXT_LEN && text.bytes().all(|c| c.is_ascii_graphic()));
        match inside {
            Some(inside) if is_normal(inside) => Ok(Self(text.to_owned())),
            _ => Err(ParseInstallPathError(shorten(text))),
        }
    }
}

macro_rules! text_conversions {
    ($($name:ident: $error:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

text_conversions!(
    ComponentUrl: ParseComponentUrlError,
    InstallPath: ParseInstallPathError
);

impl fmt::Display for ComponentUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InstallPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_http(text: &str) -> bool {
    ["https://", "http://"]
        .iter()
        .any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
}

fn is_normal(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Longer URLs and paths are refused, in bytes.
const MAX_TEXT_LEN: usize = 1024;
