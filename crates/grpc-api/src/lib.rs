//! The gRPC interfaces between the CLI, the nodes and the services.
//!
//! Methods and field numbers are the Go Constellation's; fields of our own have new numbers, and a number is never used twice. The
//! `.proto` files say what the messages mean, and behind each message's name which number its next field gets.
//!
//! A program that sends a message names every field, and one that receives it takes it apart (`let Message { a, b } = message;`, without
//! `..`) and converts it into the words of `cluster-types`: a field that is added and forgotten there does not compile. Tests and benches
//! may leave fields out (`..Message::default()`), as an older peer would, so no compiler asks them for a new field.
//!
//! Packages carry a version, which is part of each method's path. A change that an older peer would misunderstand makes a new one.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated code; its documentation is in the .proto sources"
)]

/// Attesting for the services of a node.
pub mod attestation {
    pub use v1::*;

    pub(crate) mod v1 {
        tonic::include_proto!("constellation.attestation.v1");
    }
}

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

/// Nodes whose state disk the operator opens.
pub mod recover {
    pub use v1::*;

    pub(crate) mod v1 {
        tonic::include_proto!("constellation.recover.v1");
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
    use std::fs;

    use tonic::server::NamedService;

    /// The path of a method is `/SERVICE/METHOD`, and both sides must have the same.
    #[test]
    fn names_of_services_carry_a_version() {
        fn name<T: NamedService>() -> &'static str {
            T::NAME
        }
        assert_eq!(
            name::<super::attestation::api_server::ApiServer<()>>(),
            "constellation.attestation.v1.API"
        );
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
            name::<super::recover::api_server::ApiServer<()>>(),
            "constellation.recover.v1.API"
        );
        assert_eq!(
            name::<super::verify::api_server::ApiServer<()>>(),
            "constellation.verify.v1.API"
        );
    }

    /// The numbers that a line of a message gives or reserves.
    fn numbers(line: &str) -> Vec<u32> {
        let line = line.trim_start();
        let (code, _) = line.split_once("//").unwrap_or((line, ""));
        let Some(code) = code.trim_end().strip_suffix(';') else {
            return Vec::new();
        };
        let numbers = code.strip_prefix("reserved ").or(code.split(" = ").nth(1));
        let numbers = numbers.unwrap_or_else(|| panic!("{line}: neither a field nor reserved numbers"));
        numbers.split(", ").map(|number| number.parse().unwrap()).collect()
    }

    #[test]
    fn each_message_says_which_number_its_next_field_gets() {
        for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/proto")).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            for message in text.split("\nmessage ").skip(1) {
                let (head, fields) = message.split_once('\n').unwrap();
                let (fields, _) = fields.split_once('}').unwrap();
                let highest = fields.lines().flat_map(numbers).max().unwrap_or(0);
                let expected = format!("{{ // next number: {}", highest + 1);
                assert!(head.ends_with(&expected), "message {head}: expected `{expected}`");
            }
        }
    }
}
