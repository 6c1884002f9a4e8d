//! The network of a node whose state disk is closed. Neither udev nor systemd's network daemon runs yet. Before they do, everything is undone, so that
//! they find the cards as after power-on.
//!
//! Nothing that DHCP says is believed: a wrong address makes a node that nobody reaches. The lease is not renewed. As later, no card has IPv6.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use cloud_metadata::NodeNetwork;
use cluster_types::NodeInterface;
use error_report::Chain;
use polling::poll_endlessly;
use programs::{Call, Programs, RunError};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Medium, RawSocket, wait};
use smoltcp::socket::dhcpv4;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, Ipv4Cidr};
use tokio::task::spawn_blocking;
use tracing::info;

use crate::network::{activate, set_address};
use crate::node::{FIRST_DELAY, LONGEST_DELAY};
use crate::repeated::Repeated;

const SYSTEM: &str = "/sys";
const IPV6: &str = "/proc/sys/net/ipv6/conf";
/// How long to wait for a server before saying that there is none. Then it is asked again.
const LEASE_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);
/// Between two looks at the card.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum EarlyNetworkError {
    #[error("cannot find the network card at {address}")]
    Card { address: &'static str, source: io::Error },
    #[error("cannot configure the network cards")]
    Configure(#[from] RunError),
    #[error("cannot switch IPv6 of {card}")]
    Ipv6 { card: String, source: io::Error },
}

/// The cards by the names that the kernel gave them.
pub(crate) struct EarlyNetwork {
    uplink: Card,
    private: Card,
}

#[derive(Clone, Debug)]
struct Card {
    name: String,
    mac: EthernetAddress,
}

/// What a DHCP server gave.
struct Lease {
    address: Ipv4Cidr,
    router: Option<Ipv4Addr>,
}

#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("cannot use the network card")]
    Card(#[from] io::Error),
    #[error("no DHCP server answered within {LEASE_LIMIT:?}")]
    NoAnswer,
}

impl EarlyNetwork {
    /// Asks on the uplink for an address until a server gives one.
    pub(crate) async fn start(programs: &dyn Programs) -> Result<Self, EarlyNetworkError> {
        let network = Self {
            uplink: Card::find(Path::new(SYSTEM), NodeInterface::Uplink)?,
            private: Card::find(Path::new(SYSTEM), NodeInterface::Private)?,
        };
        for card in [&network.uplink, &network.private] {
            card.switch_ipv6(Path::new(IPV6), false)?;
        }
        let name = &network.uplink.name;
        activate(programs, name).await?;
        let lease = wait_for_lease(&network.uplink).await;
        set_address(programs, name, lease.address.address(), lease.address.prefix_len()).await?;
        if let Some(router) = lease.router {
            let router = router.to_string();
            let route = Call::new("ip").args(["route", "replace", "default", "via", &router, "dev", name, "onlink"]);
            programs.run(&route).await?;
        }
        Ok(network)
    }

    /// Gives this node its address among the other nodes.
    pub(crate) async fn reach_nodes(
        &self,
        programs: &dyn Programs,
        address: Ipv4Addr,
        network: &NodeNetwork,
    ) -> Result<(), EarlyNetworkError> {
        let card = match network.interface() {
            NodeInterface::Private => &self.private,
            NodeInterface::Uplink => &self.uplink,
        };
        set_address(programs, &card.name, address, network.cidr().prefix_len()).await?;
        Ok(activate(programs, &card.name).await?)
    }

    /// Leaves the cards without addresses and routes, down, and with the kernel's own settings.
    pub(crate) async fn stop(self, programs: &dyn Programs) -> Result<(), EarlyNetworkError> {
        for card in [self.uplink, self.private] {
            let flush = Call::new("ip").args(["address", "flush", "dev", &card.name]);
            let deactivate = Call::new("ip").args(["link", "set", "dev", &card.name, "down"]);
            programs.run(&flush).await?;
            programs.run(&deactivate).await?;
            card.switch_ipv6(Path::new(IPV6), true)?;
        }
        Ok(())
    }
}

impl Card {
    fn find(system: &Path, interface: NodeInterface) -> Result<Self, EarlyNetworkError> {
        let address = interface.pci_address();
        Self::at(&system.join("bus/pci/devices").join(address))
            .map_err(|source| EarlyNetworkError::Card { address, source })
    }

    /// The kernel shows a virtio card as `<place on the bus>/virtio<n>/net/<name>`.
    fn at(place: &Path) -> io::Result<Self> {
        let virtio = first_entry(place, |name| name.starts_with("virtio"))?;
        let card = first_entry(&virtio.join("net"), |_| true)?;
        let mac = fs::read_to_string(card.join("address"))?;
        let mac = mac
            .trim()
            .parse()
            .map_err(|()| io::Error::from(io::ErrorKind::InvalidData))?;
        let name = card.file_name().and_then(|name| name.to_str());
        let name = name.ok_or(io::ErrorKind::InvalidData)?.to_owned();
        Ok(Self { name, mac })
    }

    /// Otherwise the card would get a link-local address, and obey the host's router advertisements.
    fn switch_ipv6(&self, settings: &Path, on: bool) -> Result<(), EarlyNetworkError> {
        let setting = settings.join(&self.name).join("disable_ipv6");
        match fs::write(setting, if on { "0" } else { "1" }) {
            // The kernel has no IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(EarlyNetworkError::Ipv6 {
                card: self.name.clone(),
                source,
            }),
            Ok(()) => Ok(()),
        }
    }

    /// Blocks until a server has given an address, or for [`LEASE_LIMIT`].
    fn lease(&self) -> Result<Lease, LeaseError> {
        let mut device = RawSocket::new(&self.name, Medium::Ethernet)?;
        let config = Config::new(HardwareAddress::Ethernet(self.mac));
        let deadline = std::time::Instant::now() + LEASE_LIMIT;
        let mut interface = Interface::new(config, &mut device, now());
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(dhcpv4::Socket::new());
        while std::time::Instant::now() < deadline {
            interface.poll(now(), &mut device, &mut sockets);
            if let Some(dhcpv4::Event::Configured(given)) = sockets.get_mut::<dhcpv4::Socket<'_>>(socket).poll() {
                return Ok(Lease {
                    address: given.address,
                    router: given.router,
                });
            }
            let delay = interface.poll_delay(now(), &sockets).unwrap_or(LONGEST_WAIT);
            wait(device.as_raw_fd(), Some(delay.min(LONGEST_WAIT)))?;
        }
        Err(LeaseError::NoAnswer)
    }
}

/// Of the monotonic clock: steps of the other one would change how long to wait.
fn now() -> Instant {
    Instant::from(std::time::Instant::now())
}

fn first_entry(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> io::Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&is_wanted) {
            return Ok(entry.path());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

async fn wait_for_lease(card: &Card) -> Lease {
    let repeated = Repeated::default();
    let log = |error: &LeaseError| {
        let failure = Chain(error).to_string();
        if repeated.is_news("lease", &failure) {
            info!(error = %failure, "no address on the uplink yet");
        }
    };
    let attempt = || async {
        let card = card.clone();
        let lease = spawn_blocking(move || card.lease()).await;
        lease.expect("a panic ends this program")
    };
    poll_endlessly(FIRST_DELAY, LONGEST_DELAY, attempt, log).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_by_their_place_whatever_their_names() {
        let system = tempfile::tempdir().unwrap();
        let devices = system.path().join("bus/pci/devices");
        for (place, virtio, name, mac) in [
            ("0000:00:03.0", "virtio1", "eth1", "52:54:00:00:00:03"),
            ("0000:00:04.0", "virtio0", "eth0", "52:54:00:00:00:04"),
        ] {
            let card = devices.join(place).join(virtio).join("net").join(name);
            fs::create_dir_all(&card).unwrap();
            fs::write(card.join("address"), format!("{mac}\n")).unwrap();
            fs::write(devices.join(place).join("vendor"), "0x1af4\n").unwrap();
        }
        let find = |interface| Card::find(system.path(), interface).unwrap();
        assert_eq!(find(NodeInterface::Uplink).name, "eth1");
        let private = find(NodeInterface::Private);
        assert_eq!(private.name, "eth0");
        assert_eq!(private.mac, EthernetAddress([0x52, 0x54, 0, 0, 0, 4]));
    }

    #[test]
    fn a_card_has_no_ipv6_meanwhile() {
        let settings = tempfile::tempdir().unwrap();
        let setting = settings.path().join("eth0/disable_ipv6");
        fs::create_dir(setting.parent().unwrap()).unwrap();
        let card = Card {
            name: "eth0".into(),
            mac: EthernetAddress([0; 6]),
        };
        for (on, expected) in [(false, "1"), (true, "0")] {
            card.switch_ipv6(settings.path(), on).unwrap();
            assert_eq!(fs::read_to_string(&setting).unwrap(), expected);
        }
        fs::remove_dir_all(settings.path().join("eth0")).unwrap();
        card.switch_ipv6(settings.path(), false).unwrap();
    }

    #[test]
    fn a_card_that_is_not_there_is_named_by_its_place() {
        let system = tempfile::tempdir().unwrap();
        let error = Card::find(system.path(), NodeInterface::Private).unwrap_err();
        assert!(error.to_string().contains("0000:00:04.0"), "{error}");
    }
}
