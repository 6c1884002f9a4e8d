//! Ports on loopback and of the private network's group.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use infrastructure::NodePorts;
use rustix::net::sockopt::set_socket_reuseaddr;

use crate::network::MULTICAST_GROUP;

/// The ports of a cluster while they are chosen: all different, and held, so that nobody else takes one meanwhile. After that
/// somebody may; QEMU then says so, and others are chosen.
pub(crate) struct HeldPorts {
    recorded: BTreeSet<u16>,
    held: Vec<TcpListener>,
}

impl HeldPorts {
    /// Takes the ports that the cluster has already; what is chosen is none of them.
    pub(crate) fn new(recorded: impl IntoIterator<Item = u16>) -> Self {
        Self {
            recorded: recorded.into_iter().collect(),
            held: Vec::new(),
        }
    }

    /// A port that nothing listens on.
    pub(crate) fn choose(&mut self) -> io::Result<u16> {
        loop {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let port = listener.local_addr()?.port();
            // Also one that is not taken, so that it is not offered again.
            self.held.push(listener);
            if !self.recorded.contains(&port) {
                return Ok(port);
            }
        }
    }

    /// A recorded port, or another one if somebody has it by now.
    pub(crate) fn keep_or_choose(&mut self, port: u16) -> io::Result<u16> {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => {
                self.held.push(listener);
                Ok(port)
            }
            Err(_) => self.choose(),
        }
    }

    /// The ports of a new node.
    pub(crate) fn choose_node(&mut self) -> io::Result<NodePorts> {
        Ok(NodePorts {
            bootstrapper: self.choose()?,
            kubernetes: self.choose()?,
            verify_http: self.choose()?,
            verify: self.choose()?,
            join: self.choose()?,
        })
    }

    /// The recorded ports of a node that does not run, each replaced if somebody has it by now.
    pub(crate) fn keep_or_choose_node(&mut self, ports: &NodePorts) -> io::Result<NodePorts> {
        let NodePorts {
            bootstrapper,
            kubernetes,
            verify_http,
            verify,
            join,
        } = *ports;
        Ok(NodePorts {
            bootstrapper: self.keep_or_choose(bootstrapper)?,
            kubernetes: self.keep_or_choose(kubernetes)?,
            verify_http: self.keep_or_choose(verify_http)?,
            verify: self.keep_or_choose(verify)?,
            join: self.keep_or_choose(join)?,
        })
    }
}

/// The port of a private network, from when it is chosen until the cluster's first machine has it. No other cluster of this machine
/// takes it meanwhile or later.
pub(crate) struct PrivateNetworkPort(UdpSocket);

impl PrivateNetworkPort {
    /// The recorded port, or another one if another cluster has it by now. Zero if there is none yet.
    pub(crate) fn keep_or_choose(recorded: u16) -> io::Result<Self> {
        Self::hold(recorded).or_else(|_| Self::hold(0))
    }

    /// All sockets of one group and port have to allow the reuse of the address (socket(7)). QEMU's do. This one does so only once it
    /// is bound: it finds any other, and is shared with QEMU after that.
    fn hold(port: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind((MULTICAST_GROUP, port))?;
        set_socket_reuseaddr(&socket, true)?;
        Ok(Self(socket))
    }

    pub(crate) fn number(&self) -> io::Result<u16> {
        Ok(self.0.local_addr()?.port())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddrV4;

    use rustix::fd::OwnedFd;
    use rustix::net::{AddressFamily, SocketType, bind, socket};

    use super::*;

    /// Takes part in a private network as QEMU does.
    pub(crate) fn join_as_qemu(port: u16) -> rustix::io::Result<OwnedFd> {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddrV4::new(MULTICAST_GROUP, port))?;
        Ok(socket)
    }

    #[test]
    fn a_private_network_is_held_for_machines_of_its_own_cluster() {
        let held = PrivateNetworkPort::keep_or_choose(0).unwrap();
        let port = held.number().unwrap();
        let choose = || PrivateNetworkPort::keep_or_choose(port).unwrap().number().unwrap();
        assert_ne!(choose(), port);
        let machine = join_as_qemu(port).unwrap();
        drop(held);
        assert_ne!(choose(), port);
        drop(machine);
        assert_eq!(choose(), port);
    }

    #[test]
    fn a_port_is_kept_unless_somebody_has_it() {
        let mut ports = HeldPorts::new([]);
        let port = ports.choose().unwrap();
        drop(ports);
        let mut ports = HeldPorts::new([port]);
        assert_eq!(ports.keep_or_choose(port).unwrap(), port);
        // It is held now, as if two nodes had been given the same.
        assert_ne!(ports.keep_or_choose(port).unwrap(), port);
    }

    #[test]
    fn a_recorded_port_is_not_chosen_for_another() {
        let mut ports = HeldPorts::new((1..=u16::MAX).filter(|port| port % 7 == 0));
        for _ in 0..100 {
            assert_ne!(ports.choose().unwrap() % 7, 0);
        }
    }
}
