//! The address on the private segment. It comes from metadata or from the node's own state; a wrong one makes a node that
//! nobody reaches, and nothing worse.

use std::net::Ipv4Addr;

use cloud_metadata::PrivateAddress;
use programs::{Call, Programs, RunError};

/// The second network card; the image names it by its place on the bus.
const INTERFACE: &str = "private0";

/// Can be repeated.
pub(crate) async fn set_private_address(programs: &dyn Programs, address: Ipv4Addr) -> Result<(), RunError> {
    let network = format!("{address}/{}", PrivateAddress::PREFIX_LEN);
    let assign = Call::new("ip").args(["address", "replace", &network, "dev", INTERFACE]);
    let activate = Call::new("ip").args(["link", "set", "dev", INTERFACE, "up"]);
    programs.run(&assign).await?;
    programs.run(&activate).await?;
    Ok(())
}
