//! The words that all parts of the system share: ids, roles, versions.
//!
//! Each type can hold only valid values, so that code behind the edge never has to check them again. There is no I/O here.

mod boot;
mod cidr;
mod disk;
mod host_port;
mod id;
mod interface;
mod loopback;
mod name;
mod role;
mod service;
mod variant;
mod version;

pub use boot::{BootId, ParseBootIdError};
pub use cidr::{Cidr, ParseCidrError};
pub use disk::{DiskUuid, ParseDiskUuidError};
pub use host_port::{HostPort, ParseHostPortError};
pub use id::{ClusterId, KeyServicePublicKey, MeasurementSalt, OperatorPublicKey, SealingPublicKey, WrongLength};
pub use interface::{NodeInterface, ParseNodeInterfaceError};
pub use loopback::is_loopback_host;
pub use name::{NodeName, ParseNodeNameError};
pub use role::{NodeRole, ParseNodeRoleError};
pub use service::{Service, ServicePort};
pub use variant::{ParseVariantError, Variant};
pub use version::{KubernetesVersion, ParseKubernetesVersionError};
