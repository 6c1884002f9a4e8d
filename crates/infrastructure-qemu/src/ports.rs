//! Ports on loopback.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use infrastructure::NodePorts;

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

pub(crate) fn free_udp() -> io::Result<u16> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

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
