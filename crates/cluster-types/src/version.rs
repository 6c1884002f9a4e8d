use std::fmt;
use std::str::FromStr;

use semver::Version;
use serde::{Deserialize, Serialize};

/// A Kubernetes release such as `v1.35.4`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KubernetesVersion(Version);

/// A text that is not a Kubernetes release.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a Kubernetes release: expected a form like v1.35.4")]
pub struct ParseKubernetesVersionError(String);

impl KubernetesVersion {
    /// The minor version, the 35 of `v1.35.4`.
    #[must_use]
    pub fn minor(&self) -> u64 {
        self.0.minor
    }
}

impl FromStr for KubernetesVersion {
    type Err = ParseKubernetesVersionError;

    /// Accepts only releases. Pre-releases, build metadata and a missing `v` are refused.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix('v')
            .and_then(|number| Version::parse(number).ok())
            .filter(|version| version.pre.is_empty() && version.build.is_empty())
            .map(Self)
            .ok_or_else(|| ParseKubernetesVersionError(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for KubernetesVersion {
    type Error = ParseKubernetesVersionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<KubernetesVersion> for String {
    fn from(version: KubernetesVersion) -> Self {
        version.to_string()
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_releases_only() {
        assert_eq!("v1.35.4".parse::<KubernetesVersion>().unwrap().to_string(), "v1.35.4");
        for bad in ["1.35.4", "v1.35", "v1.35.4-rc.1", "v1.35.4+k3s1", "v 1.35.4", ""] {
            assert!(bad.parse::<KubernetesVersion>().is_err(), "{bad}");
        }
    }
}
