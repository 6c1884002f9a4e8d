//! The gRPC interfaces between the CLI, the nodes and the services.
//!
//! Methods and field numbers are the Go Constellation's; fields of our own have new numbers, and a number is never used twice. The
//! `.proto` files say what the messages mean. The receiver takes a message apart, naming every field (`let Message { a, b } =
//! message;`, without `..`), and converts it into the words of `cluster-types`: a field that is added and forgotten does not compile.
//!
//! Packages carry a version, which is part of each method's path. A change that an older peer would misunderstand makes a new one.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated code; its documentation is in the .proto sources"
)]

/// Components of Kubernetes that nodes install.
pub mod components {
    pub use v1::*;

    pub(crate) mod v1 {
        tonic::include_proto!("constellation.components.v1");
    }
}

impl From<&kubernetes_components::Component> for components::Component {
    fn from(component: &kubernetes_components::Component) -> Self {
        let kubernetes_components::Component {
            url,
            hash,
            install_path,
            extract,
        } = component;
        Self {
            url: url.to_string(),
            hash: digest::oci::format(hash),
            install_path: install_path.to_string(),
            extract: *extract,
        }
    }
}

/// The first node of a cluster.
pub mod init {
    pub use v1::*;

    pub(crate) mod v1 {
        tonic::include_proto!("constellation.init.v1");
    }
}

/// Joining and rejoining nodes.
pub mod join {
    pub use v1::*;

    pub(crate) mod v1 {
        tonic::include_proto!("constellation.join.v1");
    }
}

/// Keys of disks and volumes, for the services of the cluster.
pub mod kms {
    pub use v1::*;

    pub(crate) mod v1 {
        tonic::include_proto!("constellation.kms.v1");
    }
}

/// Verifying a cluster from outside.
pub mod verify {
    pub use v1::*;

    pub(crate) mod v1 {
        tonic::include_proto!("constellation.verify.v1");
    }
}

#[cfg(test)]
mod tests {
    use tonic::server::NamedService;

    /// The path of a method is `/SERVICE/METHOD`, and both sides must have the same.
    #[test]
    fn names_of_services_carry_a_version() {
        fn name<T: NamedService>() -> &'static str {
            T::NAME
        }
        assert_eq!(
            name::<super::init::api_server::ApiServer<()>>(),
            "constellation.init.v1.API"
        );
        assert_eq!(
            name::<super::join::api_server::ApiServer<()>>(),
            "constellation.join.v1.API"
        );
        assert_eq!(
            name::<super::kms::api_server::ApiServer<()>>(),
            "constellation.kms.v1.API"
        );
        assert_eq!(
            name::<super::verify::api_server::ApiServer<()>>(),
            "constellation.verify.v1.API"
        );
    }
}
