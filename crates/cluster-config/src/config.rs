use std::path::{Path, PathBuf};

use cluster_types::{Cidr, KubernetesVersion, NodeName, NodeRole, Variant};
use digest::Digest;
use document::DocumentError;
use infrastructure::{MirrorSource, NodeSpec};

use crate::ConfigProblems;
use crate::raw;
use crate::yaml::from_yaml;

/// The Kubernetes version of a new configuration if none is chosen.
pub const DEFAULT_KUBERNETES_VERSION: &str = "v1.35.4";

/// Longer configurations are refused, in bytes.
const MAX_CONFIG_LEN: usize = 1 << 20;

/// The cluster that its administrator wants. Contains only valid values.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The cluster's name.
    pub name: String,
    /// The folder with the node image and its reference values.
    pub image: PathBuf,
    /// How nodes attest.
    pub variant: Variant,
    /// The Kubernetes release.
    pub kubernetes_version: KubernetesVersion,
    /// What the mirror's list of components must hash to. A list from the network is not believed without it.
    pub components_digest: Option<Digest>,
    /// Where nodes fetch Kubernetes from.
    pub mirror: MirrorSource,
    /// Addresses of Services.
    pub service_cidr: Cidr,
    /// Addresses of pods.
    pub pod_cidr: Cidr,
    /// The groups; the two default ones first.
    pub node_groups: Vec<NodeGroup>,
    /// Where the nodes run.
    pub provider: ProviderConfig,
}

/// Where nodes run, with what can be chosen there.
#[derive(Clone, Debug)]
pub enum ProviderConfig {
    /// VMs on this machine.
    Qemu(QemuConfig),
}

impl ProviderConfig {
    /// Its key in the configuration.
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Qemu(_) => "qemu",
        }
    }
}

/// A group of equal nodes.
#[derive(Clone, Debug)]
pub struct NodeGroup {
    /// Its name in the configuration.
    pub name: String,
    /// What its nodes do.
    pub role: NodeRole,
    /// How many there are.
    pub count: u32,
    /// Virtual processors of each.
    pub vcpus: u32,
    /// Memory of each in MiB.
    pub memory_mib: u32,
    /// State disk of each in GB (10^9 bytes).
    pub state_disk_gb: u32,
}

/// How VMs run on this machine.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// Whether hardware virtualisation is used.
    pub acceleration: Acceleration,
    /// A folder with the firmware, where it is not in one of the usual places.
    pub firmware: Option<PathBuf>,
    /// Whether guests' flushes reach the disk.
    pub flushes: bool,
}

/// Whether hardware virtualisation is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acceleration {
    /// KVM if a probe shows that it works, else software.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// Software emulation, even where KVM works.
    Software,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ParseConfigError {
    /// Longer than any real one.
    #[error("the file has {0} bytes, at most {MAX_CONFIG_LEN} are accepted")]
    TooLong(usize),
    /// Of another version.
    #[error(
        "version: {found:?} is not supported, expected {:?}; move this file away, then run `constellation config generate qemu`",
        raw::VERSION
    )]
    Version {
        /// What the file says.
        found: String,
    },
    /// Not YAML, an unknown key, or a value of another kind.
    #[error(transparent)]
    Form(#[from] DocumentError),
    /// Values of the right kind that are not allowed.
    #[error(transparent)]
    Values(#[from] ConfigProblems),
}

impl ClusterConfig {
    /// Reads `constellation-conf.yaml`; relative paths in it start at `folder`.
    ///
    /// # Errors
    /// When it has another version, unknown keys or invalid values. All problems are collected.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, ParseConfigError> {
        if text.len() > MAX_CONFIG_LEN {
            return Err(ParseConfigError::TooLong(text.len()));
        }
        let versioned: raw::Versioned = from_yaml(text)?;
        let found = versioned.found(raw::VERSION)?;
        if found != raw::VERSION {
            return Err(ParseConfigError::Version { found });
        }
        let mut config = Self::try_from(from_yaml::<raw::V5>(text)?)?;
        config.image = folder.join(&config.image);
        if let MirrorSource::Folder(path) = &mut config.mirror {
            *path = folder.join(&path);
        }
        match &mut config.provider {
            ProviderConfig::Qemu(qemu) => qemu.firmware = qemu.firmware.take().map(|path| folder.join(path)),
        }
        Ok(config)
    }

    /// The machines of all groups, control planes first.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeSpec> {
        let mut nodes = Vec::new();
        for role in [NodeRole::ControlPlane, NodeRole::Worker] {
            let groups = self.node_groups.iter().filter(|group| group.role == role);
            let members = groups.flat_map(|group| (0..group.count).map(move |_| group));
            nodes.extend((0..).zip(members).map(|(index, group)| group.node(index)));
        }
        nodes
    }
}

impl NodeGroup {
    /// Names are those of `docs/interfaces.md`.
    fn node(&self, index: u32) -> NodeSpec {
        let name: Result<NodeName, _> = format!("{}-{index}", self.role).parse();
        NodeSpec {
            name: name.expect("a role and a number make an RFC 1123 label"),
            role: self.role,
            group: self.name.clone(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            state_disk_gb: self.state_disk_gb,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExampleOptions, example};

    fn text() -> String {
        example(&ExampleOptions::default())
    }

    fn parse(text: &str) -> Result<ClusterConfig, ParseConfigError> {
        ClusterConfig::parse(text, Path::new("/workspace"))
    }

    #[test]
    fn the_example_is_valid() {
        let config = parse(&text()).unwrap();
        assert_eq!(config.name, "mini");
        assert_eq!(config.image, Path::new("/workspace/image"));
        assert_eq!(config.mirror, MirrorSource::Folder("/workspace/mirror".into()));
    }

    #[test]
    fn nodes_have_the_agreed_names() {
        let more = text().replace("initialCount: 1 # workers", "initialCount: 2");
        let nodes = parse(&more).unwrap().nodes();
        let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["control-plane-0", "worker-0", "worker-1"]);
    }

    #[test]
    fn an_endless_file_is_not_read() {
        assert!(matches!(
            parse(&"#".repeat(MAX_CONFIG_LEN + 1)),
            Err(ParseConfigError::TooLong(_))
        ));
    }
}
