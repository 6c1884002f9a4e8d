use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use download::Url;
use kubernetes_components::ComponentUrl;

/// Where components with a relative address are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComponentMirror {
    /// Below an HTTP(S) address.
    Address(Url),
    /// Below a local folder.
    Folder(PathBuf),
}

/// A text that is not a mirror's address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a mirror's address: expected http(s)://<host>/<path>")]
pub struct ParseMirrorAddressError(String);

/// Where one component is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    Address(Url),
    File(PathBuf),
}

impl FromStr for ComponentMirror {
    type Err = ParseMirrorAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseMirrorAddressError(text.chars().take(128).collect());
        let mut base = Url::parse(text).map_err(|_| refuse())?;
        let plain = matches!(base.scheme(), "http" | "https") && base.query().is_none() && base.fragment().is_none();
        if !plain {
            return Err(refuse());
        }
        // Without the slash the last part would be replaced instead of extended.
        let folder = format!("{}/", base.path().trim_end_matches('/'));
        base.set_path(&folder);
        Ok(Self::Address(base))
    }
}

impl fmt::Display for ComponentMirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Without the slash that parsing added.
            Self::Address(base) => f.write_str(base.as_str().trim_end_matches('/')),
            Self::Folder(folder) => folder.display().fmt(f),
        }
    }
}

impl ComponentMirror {
    /// The location of a document at the mirror's root.
    pub(crate) fn document(&self, name: &str) -> Location {
        match self {
            Self::Address(base) => Location::Address(base.join(name).expect("documents have plain names")),
            Self::Folder(folder) => Location::File(folder.join(name)),
        }
    }

    /// The component's own address, or its location in this mirror. `None` if they make no address.
    pub(crate) fn locate(&self, component: &ComponentUrl) -> Option<Location> {
        match (component.relative(), self) {
            (None, _) => Url::parse(component.as_str()).ok().map(Location::Address),
            (Some(path), Self::Address(base)) => base.join(path).ok().map(Location::Address),
            (Some(path), Self::Folder(folder)) => Some(Location::File(folder.join(path))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mirror: &str, component: &str) -> String {
        let mirror: ComponentMirror = mirror.parse().unwrap();
        match mirror.locate(&component.parse().unwrap()).unwrap() {
            Location::Address(url) => url.to_string(),
            Location::File(path) => path.display().to_string(),
        }
    }

    #[test]
    fn a_mirror_is_shown_as_it_was_written() {
        let address = "http://10.0.2.2:4000/mirror";
        assert_eq!(address.parse::<ComponentMirror>().unwrap().to_string(), address);
    }

    #[test]
    fn relative_components_are_below_the_mirror() {
        let expected = "http://10.0.2.2/nodes/a/mirror/bin/kubelet";
        assert_eq!(check("http://10.0.2.2/nodes/a/mirror", "bin/kubelet"), expected);
        assert_eq!(check("http://10.0.2.2/nodes/a/mirror/", "bin/kubelet"), expected);
    }

    #[test]
    fn absolute_components_have_their_own_address() {
        assert_eq!(
            check("http://10.0.2.2/", "https://example.com/kubelet"),
            "https://example.com/kubelet"
        );
    }

    #[test]
    fn other_schemes_are_no_mirrors() {
        for bad in ["", "file:///etc", "ftp://x/", "http://x/?y", "/folder"] {
            assert!(bad.parse::<ComponentMirror>().is_err(), "{bad}");
        }
    }
}
