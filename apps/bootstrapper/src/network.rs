//! The parts of the node's network that nothing else sets up. A wrong address only makes the node unreachable, and TLS
//! detects a name server that lies.

use std::io;
use std::net::Ipv4Addr;

use cloud_metadata::NodeNetwork;
use programs::{Call, Programs, RunError};

use crate::files::NodeFiles;

/// The image's `/etc/resolv.conf` points to this file.
const RESOLVER_FILE: &str = "/run/constellation/resolv.conf";

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("cannot set the address on the private network")]
    Address(#[from] RunError),
    #[error("cannot set the resolver")]
    Resolver(#[from] io::Error),
}

/// Sets the address on the private network and the resolver. Repeating it is harmless.
pub(crate) async fn set_up_network(
    files: &NodeFiles,
    programs: &dyn Programs,
    address: Ipv4Addr,
    network: &NodeNetwork,
) -> Result<(), NetworkError> {
    // CoreDNS exits when the node names no resolver, even if nothing asks for names outside the cluster.
    let servers = network.name_servers().iter();
    let resolver: String = servers.map(|server| format!("nameserver {server}\n")).collect();
    files.replace(RESOLVER_FILE, resolver.as_bytes())?;
    let card = network.interface().as_str();
    set_address(programs, card, address, network.cidr().prefix_len()).await?;
    activate(programs, card).await?;
    Ok(())
}

pub(crate) async fn set_address(
    programs: &dyn Programs,
    card: &str,
    address: Ipv4Addr,
    prefix_len: u8,
) -> Result<(), RunError> {
    let address = format!("{address}/{prefix_len}");
    let assign = Call::new("ip").args(["address", "replace", &address, "dev", card]);
    programs.run(&assign).await.map(drop)
}

pub(crate) async fn activate(programs: &dyn Programs, card: &str) -> Result<(), RunError> {
    let activate = Call::new("ip").args(["link", "set", "dev", card, "up"]);
    programs.run(&activate).await.map(drop)
}
