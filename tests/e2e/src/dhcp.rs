//! A host whose DHCP server offers more than a node requested.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use anyhow::Result;

use crate::machine::Machine;

/// Where the headers of IPv4 (RFC 791, section 3.1) and UDP (RFC 768) begin in a frame. No packet here has IPv4 options.
const IP: usize = 14;
const UDP: usize = IP + 20;
/// Where the options of a DHCP message begin, behind a cookie (RFC 2131, section 3).
const OPTIONS: usize = UDP + 8 + 236 + COOKIE.len();
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const PAD: u8 = 0;
const END: u8 = 255;

impl Machine {
    /// Adds options, by their numbers (RFC 2132), to each answer of the DHCP server of the network towards the host. The folder
    /// takes sockets.
    ///
    /// # Errors
    /// When the sockets cannot be made.
    pub fn with_dhcp_options(self, folder: &Path, options: &[(u8, &[u8])]) -> Result<Self> {
        let mut more = Vec::new();
        for (number, value) in options {
            more.extend([*number, u8::try_from(value.len())?]);
            more.extend(*value);
        }
        let [honest, changed] = ["honest.sock", "changed.sock"].map(|name| folder.join(name));
        let (from, to) = (UnixListener::bind(&honest)?, UnixListener::bind(&changed)?);
        // Ends with the machine.
        thread::spawn(move || relay(&from, &to, &more));
        let filter = "filter-redirector,id=dhcp,netdev=uplink,queue=tx,outdev=honest,indev=changed";
        Ok(self
            .with("-chardev", format!("socket,id=honest,path={}", honest.display()))
            .with("-chardev", format!("socket,id=changed,path={}", changed.display()))
            .with("-object", filter))
    }
}

/// Passes on what the network sends to the node: frames, each behind its length (QEMU, net/filter-mirror.c).
fn relay(from: &UnixListener, to: &UnixListener, options: &[u8]) -> io::Result<()> {
    let (mut from, mut to) = (from.accept()?.0, to.accept()?.0);
    loop {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        from.read_exact(&mut frame)?;
        let frame = with_options(&frame, options).unwrap_or(frame);
        #[expect(clippy::cast_possible_truncation, reason = "a frame is not that long")]
        to.write_all(&(frame.len() as u32).to_be_bytes())?;
        to.write_all(&frame)?;
    }
}

/// The same message with more options, if the frame is one of a DHCP server.
fn with_options(frame: &[u8], options: &[u8]) -> Option<Vec<u8>> {
    const SERVER: [u8; 2] = 67_u16.to_be_bytes();
    let is_from_server = frame.get(UDP..UDP + 2)? == SERVER && frame.get(OPTIONS - COOKIE.len()..OPTIONS)? == COOKIE;
    is_from_server.then_some(())?;
    let mut frame = [&frame[..end_of_options(frame)?], options, &[END]].concat();

    let ip_length = u16::try_from(frame.len() - IP).ok()?;
    let udp_length = u16::try_from(frame.len() - UDP).ok()?;
    frame[IP + 2..IP + 4].copy_from_slice(&ip_length.to_be_bytes());
    frame[UDP + 4..UDP + 6].copy_from_slice(&udp_length.to_be_bytes());
    // Zero means that there is none.
    frame[UDP + 6..UDP + 8].fill(0);
    frame[IP + 10..IP + 12].fill(0);
    let checksum = checksum(&frame[IP..UDP]);
    frame[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
    Some(frame)
}

fn end_of_options(frame: &[u8]) -> Option<usize> {
    let mut position = OPTIONS;
    loop {
        match *frame.get(position)? {
            END => return Some(position),
            PAD => position += 1,
            _ => position += 2 + usize::from(*frame.get(position + 1)?),
        }
    }
}

/// The checksum of an IPv4 header (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    #[expect(clippy::cast_possible_truncation, reason = "folded")]
    let folded = (folded + (folded >> 16)) as u16;
    !folded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An offer, as far as it matters here: a message type, then padding.
    fn offer() -> Vec<u8> {
        let mut frame = vec![0; OPTIONS];
        frame[IP] = 0x45;
        frame[UDP + 1] = 67;
        frame[OPTIONS - COOKIE.len()..].copy_from_slice(&COOKIE);
        frame.extend([53, 1, 2, PAD, END, PAD, PAD]);
        frame
    }

    #[test]
    fn answers_of_a_dhcp_server_get_more_options() {
        let frame = with_options(&offer(), &[12, 1, b'x']).unwrap();
        assert_eq!(frame[OPTIONS..], [53, 1, 2, PAD, 12, 1, b'x', END]);
        assert_eq!(frame[IP + 2..IP + 4], (frame.len() as u16 - 14).to_be_bytes());
        assert_eq!(checksum(&frame[IP..UDP]), 0);
    }

    #[test]
    fn other_frames_stay_as_they_are() {
        let mut frame = offer();
        frame[UDP + 1] = 53;
        assert_eq!(with_options(&frame, &[]), None);
        assert_eq!(with_options(&frame[..UDP], &[]), None);
    }
}
