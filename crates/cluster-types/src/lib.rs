//! The words every part of the system shares: ids, roles, versions.
//!
//! Each type can hold only a valid value, so that code below the edge never checks again. There is no I/O here.

mod cidr;
mod disk;
mod host_port;
mod id;
pub mod key_service;
mod name;
mod role;
mod service;
mod variant;
mod version;

pub use cidr::{Cidr, ParseCidrError};
pub use disk::{DiskUuid, ParseDiskUuidError};
pub use host_port::{HostPort, ParseHostPortError};
pub use id::{ClusterId, MeasurementSalt, WrongLength};
pub use name::{NodeName, ParseNodeNameError};
pub use role::{NodeRole, ParseNodeRoleError};
pub use service::{Service, ServicePort};
pub use variant::{ParseVariantError, Variant};
pub use version::{KubernetesVersion, ParseKubernetesVersionError};
