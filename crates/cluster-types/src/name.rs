use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest RFC 1123 subdomain that Kubernetes accepts as an object name.
const MAX_LEN: usize = 253;

/// The name of a Kubernetes Node: an RFC 1123 subdomain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// A text that cannot name a Node.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a node name: lower-case letters, digits, '-' and '.', starting and ending with a letter or digit"
)]
pub struct ParseNodeNameError(String);

impl NodeName {
    /// Turns a machine's name, as the cloud spells it, into a node name: in lower case, with `-` for `_`.
    ///
    /// # Errors
    /// When the result is still not an RFC 1123 subdomain.
    pub fn from_machine_name(name: &str) -> Result<Self, ParseNodeNameError> {
        name.to_ascii_lowercase().replace('_', "-").parse()
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = ParseNodeNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = text.len() <= MAX_LEN && text.split('.').all(is_label);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseNodeNameError(text.chars().take(64).collect()))
        }
    }
}

/// RFC 1123 section 2.1, in lower case as Kubernetes requires.
fn is_label(label: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !label.is_empty()
        && label.len() <= 63
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl TryFrom<String> for NodeName {
    type Error = ParseNodeNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_are_normalised() {
        for (machine, node) in [
            ("test", "test"),
            ("TEST", "test"),
            ("test_node", "test-node"),
            ("ip-10-0-0-1.ec2.internal", "ip-10-0-0-1.ec2.internal"),
        ] {
            assert_eq!(NodeName::from_machine_name(machine).unwrap().as_str(), node);
        }
    }

    #[test]
    fn what_is_no_subdomain_is_refused() {
        for bad in [
            "",
            "test_node_",
            "-a",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a/b",
            "ä",
            &"a".repeat(64),
            &"a.".repeat(200),
        ] {
            assert!(NodeName::from_machine_name(bad).is_err(), "{bad}");
        }
    }
}
