use std::net::{Ipv4Addr, SocketAddrV4};

/// The port of the API server on every control plane.
pub const API_SERVER_PORT: u16 = 6443;

/// Where each node reaches the cluster's API server: its own `api-proxy`, which passes connections on to any control plane that answers.
pub const LOCAL_API_SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7443);
