//! The parts of the node's network that nothing else sets up. A wrong address only makes the node unreachable, and TLS
//! detects a name server that lies.

use std::io;
use std::net::Ipv4Addr;

use cloud_metadata::PrivateAddress;
use programs::{Call, Programs, RunError};

use crate::files::NodeFiles;

/// The second network card, which the image names by its place on the bus.
const INTERFACE: &str = "private0";

/// The resolver of QEMU's user-mode network (QEMU manual, "Using the user mode network stack").
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The image's `/etc/resolv.conf` points to this file.
const RESOLVER_FILE: &str = "/run/constellation/resolv.conf";

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("cannot set the address on the private segment")]
    Address(#[from] RunError),
    #[error("cannot set the resolver")]
    Resolver(#[from] io::Error),
}

/// Sets the address on the private segment and the resolver. Repeating it is harmless.
pub(crate) async fn set_up_network(
    files: &NodeFiles,
    programs: &dyn Programs,
    address: Ipv4Addr,
) -> Result<(), NetworkError> {
    // CoreDNS exits when the node names no resolver, even if nothing asks for names outside the cluster.
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
