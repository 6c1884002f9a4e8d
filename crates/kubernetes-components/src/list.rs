use std::collections::BTreeSet;

use cluster_types::KubernetesVersion;
use digest::{Digest, Hasher, oci};

use crate::Component;

/// The components of one Kubernetes version, in the order in which they are hashed and installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentList {
    kubernetes_version: KubernetesVersion,
    components: Vec<Component>,
}

/// Components that do not form a list.
#[derive(Debug, thiserror::Error)]
pub enum InvalidListError {
    /// There are more components than any Kubernetes version has.
    #[error("{0} components, at most {MAX_COMPONENTS} are accepted")]
    TooMany(usize),
    /// Two files have the same destination, so the order would decide which one remains.
    #[error("two components have the install path {0:?}")]
    SamePath(String),
}

impl ComponentList {
    /// Makes a list of these components.
    ///
    /// # Errors
    /// When two of them have the same destination, or there are too many.
    pub fn new(kubernetes_version: KubernetesVersion, components: Vec<Component>) -> Result<Self, InvalidListError> {
        if components.len() > MAX_COMPONENTS {
            return Err(InvalidListError::TooMany(components.len()));
        }
        let mut paths = BTreeSet::new();
        match components
            .iter()
            .find(|component| !paths.insert(&component.install_path))
        {
            Some(second) => Err(InvalidListError::SamePath(second.install_path.to_string())),
            None => Ok(Self {
                kubernetes_version,
                components,
            }),
        }
    }

    /// The Kubernetes version that the components make up.
    #[must_use]
    pub fn kubernetes_version(&self) -> &KubernetesVersion {
        &self.kubernetes_version
    }

    /// The components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// The hash that names this list: `sha256:` and hex digits.
    #[must_use]
    pub fn hash(&self) -> String {
        let hashes: Vec<String> = self
            .components
            .iter()
            .map(|component| oci::format(&component.hash))
            .collect();
        components_hash(hashes.iter().map(String::as_str))
    }

    /// Digest of everything that the list says, except the version: the [`hash`](Self::hash) covers only the files, not where they
    /// are fetched from and installed.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.config_map_components().as_bytes())
    }
}

/// The hash of a list: SHA-256 over the concatenated hash texts, in order and without separator.
#[must_use]
pub fn components_hash<'a>(hashes: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Hasher::new();
    hashes.into_iter().for_each(|hash| hasher.update(hash.as_bytes()));
    oci::format(&hasher.finish())
}

/// More components are refused. A mirror of ours has about fifteen.
const MAX_COMPONENTS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_same_files_in_other_places_have_other_digests() {
        let list = |url: &str, install_path: &str, extract| {
            let component = Component {
                url: url.parse().unwrap(),
                hash: Digest::of(b"a file"),
                install_path: install_path.parse().unwrap(),
                extract,
            };
            ComponentList::new("v1.35.4".parse().unwrap(), vec![component]).unwrap()
        };
        let one = list("a", "/a", false);
        assert_eq!(one.digest(), list("a", "/a", false).digest());
        for other in [list("b", "/a", false), list("a", "/b", false), list("a", "/a", true)] {
            assert_eq!(other.hash(), one.hash());
            assert_ne!(other.digest(), one.digest());
        }
    }

    /// The vectors come from the predecessor, because its clusters use these names.
    #[test]
    fn hashes_lists_as_the_predecessor_did() {
        let one = "sha256:8dc78774f7cbeaf787994d386eec663f0a3cf24de1ea4893598096cb39ef2508";
        let cases: [(&[&str], &str); 3] = [
            (
                &["sha256:aa", "sha256:bb", ""],
                "97a77dfe44a08a743390c23c65e12269f883b0f8e7ddf057b967c4a16966848e",
            ),
            (
                &[one],
                "a9ffc4585fdbfec872122764b4584fb01cd561da5e55c8071eb831dcaa0add16",
            ),
            (&[], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ];
        for (hashes, expected) in cases {
            assert_eq!(components_hash(hashes.iter().copied()), format!("sha256:{expected}"));
        }
    }
}
