//! The node's network, as far as nothing else sets it up. A wrong address makes a node that nobody reaches, and nothing
//! worse; a name server that lies is found out by TLS.

use std::io;
use std::net::Ipv4Addr;

use cloud_metadata::PrivateAddress;
use programs::{Call, Programs, RunError};

use crate::files::NodeFiles;

/// The second network card; the image names it by its place on the bus.
const INTERFACE: &str = "private0";

/// QEMU's user-mode network has its resolver here (QEMU manual, "Using the user mode network stack").
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// What `/etc/resolv.conf` of the image points to.
const RESOLVER_FILE: &str = "/run/constellation/resolv.conf";

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("the address on the private segment cannot be set")]
    Address(#[from] RunError),
    #[error("the resolver cannot be set")]
    Resolver(#[from] io::Error),
}

/// Sets the address on the private segment and the resolver. Can be repeated.
pub(crate) async fn set_up_network(
    files: &NodeFiles,
    programs: &dyn Programs,
    address: Ipv4Addr,
) -> Result<(), NetworkError> {
    // CoreDNS ends itself when the node names no resolver, even if nobody asks for names outside the cluster.
    files.replace(RESOLVER_FILE, format!("nameserver {NAME_SERVER}\n").as_bytes())?;
    set_private_address(programs, address).await?;
    Ok(())
}

async fn set_private_address(programs: &dyn Programs, address: Ipv4Addr) -> Result<(), RunError> {
    let network = format!("{address}/{}", PrivateAddress::PREFIX_LEN);
    let assign = Call::new("ip").args(["address", "replace", &network, "dev", INTERFACE]);
    let activate = Call::new("ip").args(["link", "set", "dev", INTERFACE, "up"]);
    programs.run(&assign).await?;
    programs.run(&activate).await?;
    Ok(())
}
