//! The private network between the VMs, as their host sees it: every frame is a datagram of a multicast group on loopback.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::packet::Packet;

/// The group that the local provider's VMs share.
pub(crate) const GROUP: Ipv4Addr = Ipv4Addr::new(230, 0, 0, 77);
/// Larger than any frame in bytes.
const MAX_FRAME: usize = 1 << 16;
/// Enough for bursts while this thread does not run, in bytes.
const RECEIVE_BUFFER: usize = 64 << 20;
/// How soon the thread notices that it is to stop.
const TICK: Duration = Duration::from_millis(100);

/// Everything that crosses the private network, until it is stopped.
pub(super) struct PrivateNetwork {
    running: Arc<()>,
    listener: JoinHandle<io::Result<Vec<Packet>>>,
}

/// The port of a cluster's private network.
///
/// # Errors
/// When the cluster's machines were not made.
pub fn private_network_port(run_folder: &Path) -> Result<u16> {
    let record: serde_json::Value = serde_json::from_slice(&fs::read(run_folder.join("cluster.json"))?)?;
    let port = record["private_network_port"]
        .as_u64()
        .context("no private_network_port")?;
    Ok(port.try_into()?)
}

impl PrivateNetwork {
    pub(super) fn listen(port: u16) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.bind(&SocketAddr::from((GROUP, port)).into())?;
        let socket = UdpSocket::from(socket);
        socket.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST)?;
        socket.set_read_timeout(Some(TICK))?;
        let running = Arc::new(());
        let alive = Arc::downgrade(&running);
        let listener = thread::spawn(move || listen(&socket, &alive));
        Ok(Self { running, listener })
    }

    pub(super) fn stop(self) -> Result<Vec<Packet>> {
        drop(self.running);
        Ok(self.listener.join().expect("the listener does not panic")?)
    }
}

/// Until its receiver is dropped.
fn listen(socket: &UdpSocket, wanted: &Weak<()>) -> io::Result<Vec<Packet>> {
    let mut packets = Vec::new();
    let mut frame = vec![0; MAX_FRAME];
    while wanted.strong_count() > 0 {
        match socket.recv(&mut frame) {
            Ok(length) => packets.push(Packet::new(frame[..length].to_vec())),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(packets)
}
