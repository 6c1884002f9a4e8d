use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use cluster_types::{KubernetesVersion, NodeName, NodeRole};
use infrastructure::NodeSpec;

use crate::raw::{self, ShapeError};
use crate::{Cidr, ConfigProblems};

/// The Kubernetes version of a configuration that nobody chose one for.
pub const DEFAULT_KUBERNETES_VERSION: &str = "v1.35.4";

/// Groups that every cluster has, as in the predecessor.
const CONTROL_PLANES: &str = "control_plane_default";
const WORKERS: &str = "worker_default";

/// The predecessor's limit: names of cloud resources are made of it.
const MAX_NAME_LEN: usize = 37;
/// Nodes of one role: their addresses end in 100 to 199.
const MAX_NODES_OF_A_ROLE: u32 = 100;
/// No configuration of ours is longer.
const MAX_CONFIG_LEN: usize = 1 << 20;

/// Networks that nodes and pods have anyway, and why.
const TAKEN: [(Cidr, &str); 3] = [
    (Cidr::new(Ipv4Addr::new(10, 42, 0, 0), 16), "nodes"),
    (Cidr::new(Ipv4Addr::new(10, 244, 0, 0), 16), "pods"),
    (Cidr::new(Ipv4Addr::new(10, 0, 2, 0), 24), "QEMU's user network"),
];

/// A cluster as its administrator wants it. Holds only valid values.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The cluster's name.
    pub name: String,
    /// The folder with the node image and its reference values.
    pub image: PathBuf,
    /// The Kubernetes release.
    pub kubernetes_version: KubernetesVersion,
    /// Where nodes fetch Kubernetes from.
    pub mirror: MirrorSource,
    /// Addresses of Services.
    pub service_cidr: Cidr,
    /// Addresses of pods.
    pub pod_cidr: Cidr,
    /// The groups; the two default ones first.
    pub node_groups: Vec<NodeGroup>,
    /// The local provider, the only one so far.
    pub qemu: QemuConfig,
}

/// Nodes that are alike.
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

/// A folder or an HTTP address that holds a mirror of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorSource {
    /// A folder, served to the nodes by this machine.
    Folder(PathBuf),
    /// The base address, without a slash at its end.
    Http(String),
}

/// How VMs run on this machine.
#[derive(Clone, Debug, Default)]
pub struct QemuConfig {
    /// Whether hardware virtualisation is used.
    pub acceleration: Acceleration,
    /// A folder with the firmware, where it is not in one of the usual places.
    pub firmware: Option<PathBuf>,
}

/// Whether hardware virtualisation is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acceleration {
    /// KVM if a probe shows that it works, else software.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// Software emulation.
    Software,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ParseConfigError {
    /// Longer than any real one.
    #[error("the file has {0} bytes, at most {MAX_CONFIG_LEN} are read")]
    TooLong(usize),
    /// Of another version.
    #[error(
        "version: {found:?} is not supported, expected {:?}; write a new file with `constellation config generate`",
        raw::VERSION
    )]
    Version {
        /// What the file says.
        found: String,
    },
    /// Not YAML, an unknown key, or a value of another kind.
    #[error("{}{message}", prefix(path))]
    Shape {
        /// The key, if the document got so far.
        path: String,
        /// What is wrong there.
        message: String,
    },
    /// Values that cannot be.
    #[error(transparent)]
    Values(#[from] ConfigProblems),
}

impl ClusterConfig {
    /// Reads `constellation-conf.yaml`; relative paths in it start at `folder`.
    ///
    /// # Errors
    /// When it is of another version, has unknown keys, or values that cannot be; those are collected.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, ParseConfigError> {
        if text.len() > MAX_CONFIG_LEN {
            return Err(ParseConfigError::TooLong(text.len()));
        }
        let versioned: raw::Versioned = raw::from_yaml(text)?;
        let found = versioned.version.unwrap_or_default();
        if found != raw::VERSION {
            return Err(ParseConfigError::Version { found });
        }
        let mut config = Self::try_from(raw::from_yaml::<raw::V5>(text)?)?;
        config.image = folder.join(&config.image);
        if let MirrorSource::Folder(path) = &mut config.mirror {
            *path = folder.join(&path);
        }
        if let Some(path) = &mut config.qemu.firmware {
            *path = folder.join(&path);
        }
        Ok(config)
    }

    /// The machines that the groups make up, control planes first.
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
    /// Names and addresses are those of `docs/interfaces.md`.
    fn node(&self, index: u8) -> NodeSpec {
        let third = match self.role {
            NodeRole::ControlPlane => 1,
            NodeRole::Worker => 2,
        };
        let name: Result<NodeName, _> = format!("{}-{index}", self.role).parse();
        NodeSpec {
            name: name.expect("a role and a number make an RFC 1123 label"),
            role: self.role,
            group: self.name.clone(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            state_disk_gb: self.state_disk_gb,
            address: Ipv4Addr::new(10, 42, third, 100 + index),
        }
    }
}

impl TryFrom<raw::V5> for ClusterConfig {
    type Error = ConfigProblems;

    fn try_from(raw: raw::V5) -> Result<Self, Self::Error> {
        let mut problems = ConfigProblems::default();
        let name = problems.keep("name", check_name(raw.name));
        let image = problems.keep("image", check_path(raw.image));
        let kubernetes_version = problems.keep("kubernetesVersion", raw.kubernetes_version.parse());
        let mirror = problems.keep("mirror", check_mirror(raw.mirror));
        let service_cidr = raw.service_cidr.unwrap_or_else(|| defaults::SERVICE_CIDR.to_owned());
        let service_cidr = problems.keep("serviceCIDR", check_service_cidr(&service_cidr));
        let node_groups = check_groups(raw.node_groups, &mut problems);
        let qemu = check_provider(raw.provider, &mut problems);
        let value = (|| {
            Some(Self {
                name: name?,
                image: image?,
                kubernetes_version: kubernetes_version?,
                mirror: mirror?,
                service_cidr: service_cidr?,
                pod_cidr: TAKEN[1].0,
                node_groups,
                qemu: qemu?,
            })
        })();
        problems.into_result(value)
    }
}

/// What holds where the file says nothing.
mod defaults {
    use cluster_types::NodeRole;

    pub(super) const SERVICE_CIDR: &str = "10.96.0.0/12";
    pub(super) const VCPUS: u32 = 2;
    pub(super) const STATE_DISK_GB: u32 = 20;

    pub(super) fn memory_mib(role: NodeRole) -> u32 {
        match role {
            NodeRole::ControlPlane => 3072,
            NodeRole::Worker => 2048,
        }
    }
}

fn check_name(name: String) -> Result<String, String> {
    let label = name.parse::<NodeName>().is_ok() && !name.contains('.');
    if label && name.len() <= MAX_NAME_LEN {
        return Ok(name);
    }
    Err(format!(
        "{name:?} cannot name a cluster: 1 to {MAX_NAME_LEN} lower-case letters, digits and '-', starting and ending with \
         a letter or digit"
    ))
}

fn check_path(path: String) -> Result<PathBuf, &'static str> {
    if path.is_empty() {
        Err("is empty: expected the folder that the image builder wrote, with node.img and reference-values.json")
    } else {
        Ok(path.into())
    }
}

fn check_mirror(mirror: String) -> Result<MirrorSource, String> {
    match mirror.split_once("://") {
        _ if mirror.is_empty() => Err("is empty: expected a folder or an http address".to_owned()),
        None => Ok(MirrorSource::Folder(mirror.into())),
        Some(("http" | "https", rest)) if !rest.starts_with('/') && !rest.is_empty() => {
            Ok(MirrorSource::Http(mirror.trim_end_matches('/').to_owned()))
        }
        Some(_) => Err(format!("{mirror:?} is neither a folder nor an http address")),
    }
}

fn check_service_cidr(text: &str) -> Result<Cidr, String> {
    let cidr: Cidr = text.parse().map_err(|error: crate::ParseCidrError| error.to_string())?;
    // The API server takes at most 20 bits of IPv4 addresses for Services.
    if !(12..=28).contains(&cidr.prefix()) {
        return Err(format!(
            "{cidr} has a prefix of {} bits, expected 12 to 28",
            cidr.prefix()
        ));
    }
    match TAKEN.iter().find(|(taken, _)| taken.overlaps(cidr)) {
        Some((taken, whose)) => Err(format!("{cidr} overlaps {taken}, the network of {whose}")),
        None => Ok(cidr),
    }
}

fn check_groups(raw: BTreeMap<String, raw::Group>, problems: &mut ConfigProblems) -> Vec<NodeGroup> {
    for (name, role) in [(CONTROL_PLANES, NodeRole::ControlPlane), (WORKERS, NodeRole::Worker)] {
        if !raw.contains_key(name) {
            let path = format!("nodeGroups.{name}");
            problems.add(
                path,
                format!("is missing: every cluster has this group, of role {role}"),
            );
        }
    }
    let mut groups: Vec<NodeGroup> = raw
        .into_iter()
        .filter_map(|(name, group)| check_group(name, &group, problems))
        .collect();
    groups.sort_by_key(|group| {
        (
            group.name != CONTROL_PLANES && group.name != WORKERS,
            group.name.clone(),
        )
    });
    for role in [NodeRole::ControlPlane, NodeRole::Worker] {
        let count: u64 = groups
            .iter()
            .filter(|group| group.role == role)
            .map(|group| u64::from(group.count))
            .sum();
        let told_already = groups.iter().any(|group| group.count > MAX_NODES_OF_A_ROLE);
        if count > u64::from(MAX_NODES_OF_A_ROLE) && !told_already {
            problems.add(
                "nodeGroups",
                format!("{count} nodes of role {role}, at most {MAX_NODES_OF_A_ROLE} are possible"),
            );
        }
    }
    groups
}

fn check_group(name: String, raw: &raw::Group, problems: &mut ConfigProblems) -> Option<NodeGroup> {
    let path = |key: &str| format!("nodeGroups.{name}.{key}");
    let role: NodeRole = problems.keep(&path("role"), raw.role.parse())?;
    let expected = match name.as_str() {
        CONTROL_PLANES => Some(NodeRole::ControlPlane),
        WORKERS => Some(NodeRole::Worker),
        _ => None,
    };
    if let Some(expected) = expected.filter(|expected| *expected != role) {
        problems.add(path("role"), format!("is {role}, but this group is of role {expected}"));
    }
    // kubeadm's own minimum for a control plane is 2 processors and 1700 MiB.
    let (least_count, least_vcpus, least_memory) = match role {
        NodeRole::ControlPlane => (u32::from(name == CONTROL_PLANES), 2, 2048),
        NodeRole::Worker => (0, 1, 1024),
    };
    let mut within = |key: &str, value: u32, least: u32, most: u32| {
        if !(least..=most).contains(&value) {
            problems.add(path(key), format!("is {value}, expected {least} to {most}"));
        }
        value
    };
    Some(NodeGroup {
        role,
        count: within("initialCount", raw.initial_count, least_count, MAX_NODES_OF_A_ROLE),
        vcpus: within("vcpus", raw.vcpus.unwrap_or(defaults::VCPUS), least_vcpus, 64),
        memory_mib: within(
            "memoryMiB",
            raw.memory_mib.unwrap_or_else(|| defaults::memory_mib(role)),
            least_memory,
            1 << 20,
        ),
        state_disk_gb: within(
            "stateDiskSizeGB",
            raw.state_disk_gb.unwrap_or(defaults::STATE_DISK_GB),
            8,
            16_384,
        ),
        name,
    })
}

fn check_provider(raw: raw::Provider, problems: &mut ConfigProblems) -> Option<QemuConfig> {
    let Some(qemu) = raw.qemu else {
        problems.add(
            "provider",
            "is empty: expected the section of one provider; known is qemu",
        );
        return None;
    };
    let acceleration = match qemu.acceleration.as_deref() {
        None | Some("auto") => Acceleration::Auto,
        Some("kvm") => Acceleration::Kvm,
        Some("software") => Acceleration::Software,
        Some(other) => {
            let message = format!("{other:?} is unknown: use auto, kvm or software");
            problems.add("provider.qemu.acceleration", message);
            return None;
        }
    };
    let firmware = match qemu.firmware {
        Some(folder) if folder.is_empty() => {
            problems.add(
                "provider.qemu.firmware",
                "is empty: expected a folder, or leave the key out",
            );
            None
        }
        folder => folder.map(PathBuf::from),
    };
    Some(QemuConfig { acceleration, firmware })
}

fn prefix(path: &str) -> String {
    match path {
        "" | "." => String::new(),
        path => format!("{path}: "),
    }
}

impl From<ShapeError> for ParseConfigError {
    fn from(error: ShapeError) -> Self {
        Self::Shape {
            path: error.path,
            message: error.message,
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

    /// Changes one line of the example and expects one error that names the key.
    fn check(line: &str, replacement: &str, path: &str, reason: &str) {
        let good = text();
        assert_eq!(good.matches(line).count(), 1, "{line:?} is not once in the example");
        let error = parse(&good.replace(line, replacement))
            .expect_err(replacement)
            .to_string();
        assert!(error.contains(path), "{replacement:?}: {error}");
        assert!(error.contains(reason), "{replacement:?}: {error}");
        assert!(!error.contains("problems:"), "one mistake, several problems: {error}");
        assert!(error.lines().count() == 1, "{error}");
    }

    #[test]
    fn the_example_is_valid() {
        let config = parse(&text()).unwrap();
        assert_eq!(config.name, "mini");
        assert_eq!(config.image, Path::new("/workspace/image"));
        assert_eq!(config.mirror, MirrorSource::Folder("/workspace/mirror".into()));
    }

    #[test]
    fn bad_input_to_each_key_gives_one_error_that_names_it() {
        for (line, replacement, path, reason) in [
            ("version: v5", "version: v4", "version", "config generate"),
            ("version: v5", "", "version", "expected \"v5\""),
            ("name: mini", "name: Mini", "name", "lower-case"),
            ("name: mini", "name: a.b", "name", "lower-case"),
            ("name: mini", "name: \"\"", "name", "1 to 37"),
            ("name: mini", "name: [a]", "name", ""),
            ("name: mini", "naem: mini", "naem", "unknown"),
            ("image: image", "image: \"\"", "image", "node.img"),
            ("image: image", "", "image", "missing"),
            (
                "kubernetesVersion: v1.35.4",
                "kubernetesVersion: v1.35",
                "kubernetesVersion",
                "v1.35.4",
            ),
            ("mirror: mirror", "mirror: ftp://mirror", "mirror", "http"),
            ("mirror: mirror", "mirror: http://", "mirror", "http"),
            ("mirror: mirror", "mirror: \"\"", "mirror", "folder"),
            (
                "serviceCIDR: 10.96.0.0/12",
                "serviceCIDR: 10.96.0.1/12",
                "serviceCIDR",
                "10.96.0.0/12",
            ),
            (
                "serviceCIDR: 10.96.0.0/12",
                "serviceCIDR: 10.0.0.0/8",
                "serviceCIDR",
                "12 to 28",
            ),
            (
                "serviceCIDR: 10.96.0.0/12",
                "serviceCIDR: 10.244.8.0/24",
                "serviceCIDR",
                "pods",
            ),
            (
                "  control_plane_default:",
                "  control_planes:",
                "nodeGroups.control_plane_default",
                "missing",
            ),
            (
                "role: control-plane",
                "role: master",
                "nodeGroups.control_plane_default.role",
                "control-plane or worker",
            ),
            (
                "role: control-plane",
                "role: worker",
                "nodeGroups.control_plane_default.role",
                "control-plane",
            ),
            ("role: worker", "rolle: worker", "rolle", "unknown"),
            (
                "initialCount: 1 # control planes",
                "initialCount: 0",
                "nodeGroups.control_plane_default.initialCount",
                "1 to",
            ),
            (
                "initialCount: 1 # workers",
                "initialCount: -1",
                "nodeGroups.worker_default.initialCount",
                "",
            ),
            (
                "initialCount: 1 # workers",
                "initialCount: many",
                "nodeGroups.worker_default.initialCount",
                "",
            ),
            (
                "initialCount: 1 # workers",
                "initialCount: 101",
                "nodeGroups.worker_default.initialCount",
                "100",
            ),
            (
                "vcpus: 2 # control planes",
                "vcpus: 1",
                "nodeGroups.control_plane_default.vcpus",
                "2 to 64",
            ),
            (
                "memoryMiB: 2048",
                "memoryMiB: 512",
                "nodeGroups.worker_default.memoryMiB",
                "1024",
            ),
            (
                "memoryMiB: 2048",
                "memoryMiB: 2G",
                "nodeGroups.worker_default.memoryMiB",
                "",
            ),
            (
                "stateDiskSizeGB: 20 # workers",
                "stateDiskSizeGB: 1",
                "nodeGroups.worker_default.stateDiskSizeGB",
                "8",
            ),
            ("  qemu:", "  aws:", "provider", "aws"),
            (
                "acceleration: auto",
                "acceleration: turbo",
                "provider.qemu.acceleration",
                "auto, kvm or software",
            ),
            ("acceleration: auto", "nested: 1", "nested", "unknown"),
            (
                "# firmware: /usr/share/OVMF",
                "firmware: \"\"",
                "provider.qemu.firmware",
                "folder",
            ),
        ] {
            check(line, replacement, path, reason);
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let bad = text()
            .replace("name: mini", "name: A")
            .replace("memoryMiB: 2048", "memoryMiB: 1");
        let ParseConfigError::Values(problems) = parse(&bad).unwrap_err() else {
            panic!()
        };
        let paths: Vec<_> = problems.all().iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["name", "nodeGroups.worker_default.memoryMiB"]);
    }

    #[test]
    fn nodes_have_the_agreed_names_and_addresses() {
        let more = text().replace("initialCount: 1 # workers", "initialCount: 2");
        let nodes = parse(&more).unwrap().nodes();
        let shown: Vec<_> = nodes
            .iter()
            .map(|node| format!("{} {}", node.name, node.address))
            .collect();
        assert_eq!(
            shown,
            [
                "control-plane-0 10.42.1.100",
                "worker-0 10.42.2.100",
                "worker-1 10.42.2.101"
            ]
        );
    }

    #[test]
    fn an_endless_file_is_not_read() {
        assert!(matches!(
            parse(&"#".repeat(MAX_CONFIG_LEN + 1)),
            Err(ParseConfigError::TooLong(_))
        ));
    }

    #[test]
    fn keys_given_twice_are_refused() {
        let error = parse(&format!("{}\nname: other\n", text())).unwrap_err().to_string();
        assert!(error.contains("name"), "{error}");
    }
}
