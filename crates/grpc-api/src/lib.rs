//! The gRPC interfaces between the CLI, the nodes and the services.
//!
//! Packages, methods and field numbers are the Go Constellation's; fields of our own have new numbers. The `.proto` files say
//! what the messages mean. Whoever receives a message converts it into the words of `cluster-types`.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated code; its documentation is in the .proto sources"
)]

/// Components of Kubernetes that nodes install.
pub mod components {
    tonic::include_proto!("components");
}

impl From<&kubernetes_components::Component> for components::Component {
    fn from(component: &kubernetes_components::Component) -> Self {
        Self {
            url: component.url.to_string(),
            hash: digest::oci::format(&component.hash),
            install_path: component.install_path.to_string(),
            extract: component.extract,
        }
    }
}

/// The first node of a cluster.
pub mod init {
    tonic::include_proto!("init");
}

/// Joining and rejoining nodes.
pub mod join {
    tonic::include_proto!("join");
}

/// Keys of disks and volumes, for the services of the cluster.
pub mod kms {
    tonic::include_proto!("kms");
}

/// Verifying a cluster from outside.
pub mod verify {
    tonic::include_proto!("verify");
}
