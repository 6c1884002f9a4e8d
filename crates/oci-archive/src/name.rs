use std::fmt;
use std::str::FromStr;

/// Longer names are refused. Registries allow 255 bytes for the repository and 128 for the tag.
const MAX_LEN: usize = 384;

/// The full name of an image with its tag, such as `registry.k8s.io/kube-apiserver:v1.35.4`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    repository: String,
    tag: String,
}

/// A text that is not a full image name.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a full image name: expected a form like registry.example/path/name:tag")]
pub struct ParseImageNameError(String);

impl ImageName {
    /// The part before the tag.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The part after the last colon.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl FromStr for ImageName {
    type Err = ParseImageNameError;

    /// Accepts only names with a host and a tag: each tool understands short names differently.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseImageNameError(text.chars().take(64).collect());
        let (repository, tag) = text.rsplit_once(':').ok_or_else(refused)?;
        let mut parts = repository.split('/');
        let host = parts.next().is_some_and(is_host);
        let path: Vec<&str> = parts.collect();
        if text.len() <= MAX_LEN && host && !path.is_empty() && path.iter().all(|part| is_word(part)) && is_tag(tag) {
            Ok(Self {
                repository: repository.to_owned(),
                tag: tag.to_owned(),
            })
        } else {
            Err(refused())
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, "0"));
    (name.contains('.') || name == "localhost") && is_word(name) && port.parse::<u16>().is_ok()
}

fn is_word(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let (Some(&first), Some(&last)) = (text.as_bytes().first(), text.as_bytes().last()) else {
        return false;
    };
    inner(first) && inner(last) && text.bytes().all(|c| inner(c) || matches!(c, b'.' | b'-' | b'_'))
}

fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_full_names_only() {
        for good in [
            "registry.k8s.io/coredns/coredns:v1.13.1",
            "localhost/pause:3.10.1",
            "a.b:5000/c:d",
        ] {
            assert_eq!(good.parse::<ImageName>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "pause",
            "pause:3",
            "a.b/c",
            "a.b/C:d",
            "a.b/c:",
            "a.b//c:d",
            "a.b/../c:d",
            "a.b/c:-d",
            "a.b:x/c:d",
        ] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }
}
