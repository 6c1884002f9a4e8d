/// The programs of ours that run as pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Lets nodes in.
    Join,
    /// Hands out keys.
    Key,
    /// Proves what a node runs.
    Verification,
}

impl Service {
    /// All of them; the key service first, because the join service calls it.
    pub const ALL: [Self; 3] = [Self::Key, Self::Join, Self::Verification];

    /// Name of its program, container image, DaemonSet, Service and service account.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Join => "join-service",
            Self::Key => "key-service",
            Self::Verification => "verification-service",
        }
    }

    /// Name of its container image.
    ///
    /// The images are part of the measured root and never pulled, so the registry is no host.
    #[must_use]
    pub fn image_name(self) -> String {
        format!("localhost/constellation/{}:v{}", self.name(), env!("CARGO_PKG_VERSION"))
    }
}
