use std::ops::RangeInclusive;

/// Our programs that run as pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Admits nodes that prove what they run.
    Join,
    /// Releases keys to nodes that prove what they run.
    Key,
    /// Proves what its node runs.
    Verification,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `grpc` or `http`.
    pub name: &'static str,
    /// The port inside the cluster.
    pub number: u16,
    /// The port on every node that runs the service, if it is reached from outside the cluster.
    pub on_node: Option<u16>,
}

impl Service {
    /// All services. The key service comes first, because the join service calls it.
    pub const ALL: [Self; 3] = [Self::Key, Self::Join, Self::Verification];

    /// The users of the services, each nobody else's on a node: they own the files and sockets of their services, and the key service's
    /// files hold the cluster's keys. systemd gives these numbers to no one (`docs/UIDS-GIDS.md` in its sources), and other container
    /// images have smaller or larger ones.
    pub const USERS: RangeInclusive<u32> = 61_000..=61_002;

    /// The Kubernetes namespace of the services and their configuration.
    pub const NAMESPACE: &str = "kube-system";

    /// The name of its program, container image, DaemonSet, Service and service account.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Join => "join-service",
            Self::Key => "key-service",
            Self::Verification => "verification-service",
        }
    }

    /// The number of the user that it runs as, one of [`Self::USERS`].
    #[must_use]
    pub const fn user(self) -> u32 {
        match self {
            Self::Key => 61_000,
            Self::Join => 61_001,
            Self::Verification => 61_002,
        }
    }

    /// The name of its container image.
    ///
    /// The images are part of the measured root and never pulled, so the registry in the name does not exist.
    #[must_use]
    pub fn image_name(self) -> String {
        format!("localhost/constellation/{}:v{}", self.name(), env!("CARGO_PKG_VERSION"))
    }

    /// The ports at which it is reached.
    #[must_use]
    pub const fn ports(self) -> &'static [ServicePort] {
        match self {
            Self::Join => &[ServicePort::JOIN],
            // It has a Unix socket.
            Self::Key => &[],
            Self::Verification => &[ServicePort::VERIFICATION, ServicePort::VERIFICATION_HTTP],
        }
    }
}

/// The numbers are the predecessor's (docs/interfaces.md).
impl ServicePort {
    /// The join service, on control planes.
    pub const JOIN_ON_NODE: u16 = 30090;
    /// The verification service, on every node.
    pub const VERIFICATION_ON_NODE: u16 = 30081;
    /// The verification service, for clients that do not speak gRPC.
    pub const VERIFICATION_HTTP_ON_NODE: u16 = 30080;

    const JOIN: Self = Self::new("grpc", 9090, Some(Self::JOIN_ON_NODE));
    const VERIFICATION: Self = Self::new("grpc", 9090, Some(Self::VERIFICATION_ON_NODE));
    const VERIFICATION_HTTP: Self = Self::new("http", 8080, Some(Self::VERIFICATION_HTTP_ON_NODE));

    const fn new(name: &'static str, number: u16, on_node: Option<u16>) -> Self {
        Self { name, number, on_node }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_service_has_a_user_of_its_own() {
        let users: BTreeSet<_> = Service::ALL.into_iter().map(Service::user).collect();
        assert_eq!(users, Service::USERS.collect());
    }
}
