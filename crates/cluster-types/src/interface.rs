use std::fmt;
use std::str::FromStr;

/// A network card of a node, by what it is for. The image names cards by their place on the bus
/// (images/root/usr/lib/systemd/network), and keeps packets of pods off both (pod-network.nft).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeInterface {
    /// Leads to the host and from there on.
    Uplink,
    /// Leads to the other nodes.
    Private,
}

/// A name that the image gives to no network card.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a network card of a node: expected uplink0 or private0")]
pub struct ParseNodeInterfaceError(String);

impl NodeInterface {
    const ALL: [Self; 2] = [Self::Uplink, Self::Private];

    /// Its place on the bus. It has the name only when udev has given it.
    #[must_use]
    pub const fn pci_address(self) -> &'static str {
        match self {
            Self::Uplink => "0000:00:03.0",
            Self::Private => "0000:00:04.0",
        }
    }

    /// The name on the node.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uplink => "uplink0",
            Self::Private => "private0",
        }
    }
}

impl FromStr for NodeInterface {
    type Err = ParseNodeInterfaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|interface| interface.as_str() == text);
        named.ok_or_else(|| ParseNodeInterfaceError(text.chars().take(64).collect()))
    }
}

impl fmt::Display for NodeInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_names_these_cards_and_keeps_pods_packets_off_them() {
        let links = [
            include_str!("../../../images/root/usr/lib/systemd/network/10-uplink.link"),
            include_str!("../../../images/root/usr/lib/systemd/network/10-private.link"),
        ];
        for (interface, link) in NodeInterface::ALL.into_iter().zip(links) {
            let place = interface.pci_address();
            for wanted in [format!("Name={interface}"), format!("Path=pci-{place}")] {
                assert!(link.lines().any(|line| line == wanted), "{wanted}: {link}");
            }
        }
        let filter = include_str!("../../../images/root/usr/share/constellation/pod-network.nft");
        let cards = NodeInterface::ALL
            .map(|interface| format!("\"{interface}\""))
            .join(", ");
        for direction in ["oifname", "iifname"] {
            assert!(filter.contains(&format!("{direction} {{ {cards} }}")), "{filter}");
        }
    }

    #[test]
    fn only_the_images_names_are_read() {
        assert_eq!("private0".parse::<NodeInterface>().unwrap(), NodeInterface::Private);
        for bad in ["", "lo", "cni0", "private1", "private0 up", "eth0"] {
            assert!(bad.parse::<NodeInterface>().is_err(), "{bad}");
        }
    }
}
