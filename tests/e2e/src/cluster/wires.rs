//! Everything that leaves or reaches the nodes of a cluster: the private network between them, and each one's way to the host.

use std::net::TcpStream;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use infrastructure::Machine;
use serde_json::json;

use super::private_network::{PrivateNetwork, private_network_port};
use crate::monitor::Monitor;
use crate::packet::{Packet, dumped_packets};

/// The name of the object in QEMU.
const FILTER: &str = "capture";

/// A capture of all wires, until it is stopped.
pub struct Capture {
    private_network: PrivateNetwork,
    uplinks: Vec<Uplink>,
}

impl Capture {
    /// Begins to listen. The folder is that of the local provider.
    pub(crate) fn start(run_folder: &Path, machines: &[Machine]) -> Result<Self> {
        let uplink = |machine: &Machine| Uplink::start(&run_folder.join("nodes").join(machine.name.as_str()), machine);
        Ok(Self {
            private_network: PrivateNetwork::listen(private_network_port(run_folder)?)?,
            uplinks: machines.iter().map(uplink).collect::<Result<_>>()?,
        })
    }

    /// Stops, and gives what was there.
    ///
    /// # Errors
    /// When listening failed, or nothing at all was seen on a wire.
    pub fn stop(self) -> Result<Vec<Packet>> {
        let mut wires = vec![self.private_network.stop()?];
        for uplink in self.uplinks {
            wires.push(uplink.stop()?);
        }
        ensure!(wires.iter().all(|packets| !packets.is_empty()), "a capture saw nothing");
        Ok(wires.into_iter().flatten().collect())
    }
}

struct Uplink {
    monitor: Monitor,
    file: PathBuf,
}

impl Uplink {
    fn start(folder: &Path, machine: &Machine) -> Result<Self> {
        let file = folder.join("uplink.pcap");
        let mut monitor = Monitor::connect(&folder.join("qmp.sock"))?;
        let filter = json!({ "qom-type": "filter-dump", "id": FILTER, "netdev": "uplink", "file": file });
        monitor.execute("object-add", filter)?;
        // So that a capture that works has seen something.
        TcpStream::connect((machine.host.as_str(), machine.ports.verify))?;
        Ok(Self { monitor, file })
    }

    fn stop(self) -> Result<Vec<Packet>> {
        let file = self.file.clone();
        drop(self);
        dumped_packets(&file)
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        // The next capture would find it in its way; if this fails, QEMU says so then.
        let _ = self.monitor.execute("object-del", json!({ "id": FILTER }));
    }
}
