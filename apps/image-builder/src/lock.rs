//! The lock: exactly which Debian packages an image is built from.
//!
//! A mirror keeps only the newest versions. The packages of a lock that is some weeks old can be downloaded only from an archive of
//! old packages, or taken from the builder's own cache. See `docs/adr/0003-image-from-package-archives.md`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use digest::Digest;

/// The purpose of packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Purpose {
    /// The root file system of a node.
    Node,
    /// Building an image: tools and the kernel.
    Tools,
}

/// One package file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LockedPackage {
    pub(crate) purpose: Purpose,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sha256: Digest,
}

/// All package files of an image, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lock(BTreeSet<LockedPackage>);

/// A lock file that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line} of the package lock is not of the form `node|tools NAME VERSION SHA256`: {text}")]
pub(crate) struct ParseLockError {
    line: usize,
    text: String,
}

impl Lock {
    pub(crate) fn new(packages: impl IntoIterator<Item = LockedPackage>) -> Self {
        Self(packages.into_iter().collect())
    }

    pub(crate) fn packages(&self) -> impl Iterator<Item = &LockedPackage> {
        self.0.iter()
    }

    pub(crate) fn of(&self, purpose: Purpose) -> impl Iterator<Item = &LockedPackage> {
        self.packages().filter(move |package| package.purpose == purpose)
    }

    pub(crate) fn contains(&self, purpose: Purpose, name: &str) -> bool {
        self.of(purpose).any(|package| package.name == name)
    }
}

impl FromStr for Lock {
    type Err = ParseLockError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
        let packages = lines.map(|(number, line)| {
            parse_line(line).ok_or_else(|| ParseLockError {
                line: number + 1,
                text: line.to_owned(),
            })
        });
        Ok(Self(packages.collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Debian packages of the node image; written by `cargo xtask image lock`."
        )?;
        self.packages().try_for_each(|package| {
            let LockedPackage {
                purpose,
                name,
                version,
                sha256,
            } = package;
            writeln!(f, "{purpose} {name} {version} {sha256}")
        })
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Tools => "tools",
        })
    }
}

fn parse_line(line: &str) -> Option<LockedPackage> {
    let mut words = line.split(' ');
    let purpose = match words.next()? {
        "node" => Purpose::Node,
        "tools" => Purpose::Tools,
        _ => return None,
    };
    let name = words.next()?.to_owned();
    let version = words.next()?.to_owned();
    let sha256 = words.next()?.parse().ok()?;
    words.next().is_none().then_some(LockedPackage {
        purpose,
        name,
        version,
        sha256,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> LockedPackage {
        LockedPackage {
            purpose: Purpose::Node,
            name: "libcap2".to_owned(),
            version: "1:2.75-10+deb13u1+b3".to_owned(),
            sha256: Digest::new([7; 32]),
        }
    }

    #[test]
    fn lock_survives_a_round_trip() {
        let tools = LockedPackage {
            purpose: Purpose::Tools,
            ..example()
        };
        let lock = Lock::new([tools, example()]);
        assert_eq!(lock.to_string().parse(), Ok(lock));
    }

    #[test]
    fn order_of_the_packages_does_not_matter() {
        let other = LockedPackage {
            name: "a".to_owned(),
            ..example()
        };
        assert_eq!(
            Lock::new([example(), other.clone()]).to_string(),
            Lock::new([other, example()]).to_string()
        );
    }

    #[test]
    fn line_with_a_short_digest_is_refused() {
        assert_eq!("node a 1 00".parse::<Lock>().unwrap_err().line, 1);
    }

    #[test]
    fn line_with_another_purpose_is_refused() {
        let line = example().sha256.to_string();
        assert!(format!("host a 1 {line}").parse::<Lock>().is_err());
    }
}
