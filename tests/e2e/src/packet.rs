//! Frames of an Ethernet network, as the host sees them.

use std::net::Ipv4Addr;

/// `WireGuard`'s port as flannel chooses it.
const WIREGUARD: u16 = 51820;

/// A frame.
pub struct Packet(Vec<u8>);

impl Packet {
    pub(crate) fn new(frame: Vec<u8>) -> Self {
        Self(frame)
    }

    /// The whole frame.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it carries `WireGuard`.
    #[must_use]
    pub fn is_wireguard(&self) -> bool {
        self.udp_port() == Some(WIREGUARD)
    }

    /// Source and destination, if it is IPv4 (RFC 894, RFC 791 section 3.1).
    #[must_use]
    pub fn addresses(&self) -> Option<[Ipv4Addr; 2]> {
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(self.0.get(at..at + 4)?).ok()?));
        (self.0.get(12..14)? == [0x08, 0x00]).then_some(())?;
        Some([address(26)?, address(30)?])
    }

    /// Where a UDP datagram goes to (RFC 768).
    fn udp_port(&self) -> Option<u16> {
        self.addresses()?;
        let header = 14 + usize::from(self.0.get(14)? & 0x0f) * 4;
        (*self.0.get(23)? == 17).then_some(())?;
        let port = self.0.get(header + 2..header + 4)?;
        Some(u16::from_be_bytes(port.try_into().ok()?))
    }
}
