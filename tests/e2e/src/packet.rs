//! Frames of an Ethernet network, as the host sees them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, Result};

/// `WireGuard`'s port as flannel chooses it.
const WIREGUARD: u16 = 51820;

/// Length of the header of a file of packets, and of the header of each of them, with its length at 8 (libpcap, pcap-savefile(5)).
const FILE_HEADER_LEN: usize = 24;
const PACKET_HEADER_LEN: usize = 16;

/// An Ethernet frame, from its header on.
pub struct Packet(Vec<u8>);

/// What QEMU's `filter-dump` wrote. A packet that it is just writing is left out.
///
/// # Errors
/// When the file does not exist or does not contain packets.
pub fn dumped_packets(file: &Path) -> Result<Vec<Packet>> {
    let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let mut rest = content.get(FILE_HEADER_LEN..).context("no file of packets")?;
    let mut packets = Vec::new();
    while let Some((header, behind)) = rest.split_first_chunk::<PACKET_HEADER_LEN>() {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let Some((frame, behind)) = behind.split_at_checked(length as usize) else {
            break;
        };
        packets.push(Packet(frame.to_vec()));
        rest = behind;
    }
    Ok(packets)
}

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
        (self.0.get(12..14)? == [0x08, 0x00]).then_some(())?;
        Some([self.address(26)?, self.address(30)?])
    }

    /// The packet's destination: of IPv4 and IPv6 (RFC 8200, section 3), or the target of ARP (RFC 826).
    #[must_use]
    pub fn destination(&self) -> Option<IpAddr> {
        match *self.0.get(12..14)? {
            [0x08, 0x00] => self.address(30).map(IpAddr::V4),
            [0x08, 0x06] => self.address(38).map(IpAddr::V4),
            [0x86, 0xdd] => Some(IpAddr::from(*self.0.get(38..)?.first_chunk::<16>()?)),
            _ => None,
        }
    }

    fn address(&self, position: usize) -> Option<Ipv4Addr> {
        Some(Ipv4Addr::from(*self.0.get(position..)?.first_chunk::<4>()?))
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
