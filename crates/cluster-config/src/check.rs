//! Turns the file's contents into valid values. Every problem is noted with its key.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;

use cluster_types::{Cidr, NodeName, NodeRole, ParseNodeRoleError};

use crate::problems::shown;
use crate::raw::{self, Given};
use crate::{Acceleration, ClusterConfig, ConfigProblems, NodeGroup, ProviderConfig, QemuConfig};

/// The groups that every cluster has, as in the predecessor.
const CONTROL_PLANES: &str = "control_plane_default";
const WORKERS: &str = "worker_default";

/// The predecessor's limit: names of cloud resources contain it.
const MAX_NAME_LEN: usize = 37;
/// More would need role grants, which nothing issues yet.
const MAX_CONTROL_PLANES: u32 = 1;
/// More were never tried, and the local provider has addresses for no more.
const MAX_WORKERS: u32 = 100;

impl TryFrom<raw::V5> for ClusterConfig {
    type Error = ConfigProblems;

    fn try_from(raw: raw::V5) -> Result<Self, Self::Error> {
        let mut problems = ConfigProblems::default();
        let name = problems.required("name", raw.name, check_cluster_name);
        let image = problems.required("image", raw.image, check_image);
        let variant = problems.required("attestationVariant", raw.attestation_variant, |text| text.parse());
        let kubernetes_version = problems.required("kubernetesVersion", raw.kubernetes_version, |text| text.parse());
        let components_digest = match raw.kubernetes_components_digest {
            Given::Nothing => Some(None),
            given => problems
                .required("kubernetesComponentsDigest", given, |text| digest::oci::parse(&text))
                .map(Some),
        };
        let mirror = problems.required("mirror", raw.mirror, |text| text.parse());
        let service_cidr = problems.optional("serviceCIDR", raw.service_cidr, defaults::SERVICE_CIDR, |text| {
            Cidr::for_services(&text)
        });
        let node_groups = check_groups(raw.node_groups, &mut problems);
        let provider = check_provider(raw.provider, &mut problems);
        problems.refuse("", &raw.unknown, known::TOP);
        let value = (|| {
            Some(Self {
                name: name?,
                image: image?,
                variant: variant?,
                kubernetes_version: kubernetes_version?,
                components_digest: components_digest?,
                mirror: mirror?,
                service_cidr: service_cidr?,
                pod_cidr: Cidr::PODS,
                node_groups: node_groups?,
                provider: provider?,
            })
        })();
        problems.into_result(value)
    }
}

/// The keys of each section, for the message about a mistyped one.
mod known {
    pub(super) const TOP: &str = "version, name, image, attestationVariant, kubernetesVersion, kubernetesComponentsDigest, \
                                  mirror, serviceCIDR, nodeGroups or provider";
    pub(super) const GROUP: &str = "role, initialCount, vcpus, memoryMiB or stateDiskSizeGB";
    pub(super) const PROVIDER: &str = "qemu";
    pub(super) const QEMU: &str = "acceleration, firmware or flushes";
}

/// The values of keys that the file does not have.
mod defaults {
    use cluster_types::NodeRole;

    pub(super) const SERVICE_CIDR: &str = "10.96.0.0/12";
    pub(super) const ACCELERATION: &str = "auto";
    pub(super) const VCPUS: u64 = 2;
    pub(super) const STATE_DISK_GB: u64 = 20;

    pub(super) fn memory_mib(role: NodeRole) -> u64 {
        match role {
            NodeRole::ControlPlane => 3072,
            NodeRole::Worker => 2048,
        }
    }
}

/// A text that cannot name a cluster.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a valid cluster name: use 1 to {MAX_NAME_LEN} lower-case letters, digits and '-', starting and ending with a \
     letter or digit"
)]
pub struct ClusterNameError(String);

/// Checks the name of a cluster, as `name` in the configuration or on the command line.
///
/// # Errors
/// When names of machines and cloud resources cannot be made of it.
pub fn check_cluster_name(name: String) -> Result<String, ClusterNameError> {
    let label = name.parse::<NodeName>().is_ok() && !name.contains('.');
    if label && name.len() <= MAX_NAME_LEN {
        Ok(name)
    } else {
        Err(ClusterNameError(name.chars().take(64).collect()))
    }
}

fn check_image(path: String) -> Result<PathBuf, &'static str> {
    if path.is_empty() {
        Err("is empty: expected the folder that the image builder wrote, with node.img and reference-values.json")
    } else {
        Ok(path.into())
    }
}

fn check_groups(raw: Given<raw::Groups>, problems: &mut ConfigProblems) -> Option<Vec<NodeGroup>> {
    let raw = problems.required("nodeGroups", raw, anything)?;
    for (name, role) in [(CONTROL_PLANES, NodeRole::ControlPlane), (WORKERS, NodeRole::Worker)] {
        if !raw.contains_key(name) {
            let path = format!("nodeGroups.{name}");
            let problem = format!("is missing: every cluster has this group, with role {role}");
            problems.add(path, problem);
        }
    }
    let mut groups: Vec<NodeGroup> = raw
        .into_iter()
        .filter_map(|(name, group)| check_group(name, group, problems))
        .collect();
    groups.sort_by_key(|group| {
        (
            group.name != CONTROL_PLANES && group.name != WORKERS,
            group.name.clone(),
        )
    });
    for role in [NodeRole::ControlPlane, NodeRole::Worker] {
        let of_role = groups.iter().filter(|group| group.role == role);
        let count: u64 = of_role.map(|group| u64::from(group.count)).sum();
        let most = most_of(role);
        if count > most.into() {
            problems.add(
                "nodeGroups",
                format!("{count} nodes of role {role}, at most {most} are supported"),
            );
        }
    }
    Some(groups)
}

fn check_group(name: String, raw: Given<raw::Group>, problems: &mut ConfigProblems) -> Option<NodeGroup> {
    let section = format!("nodeGroups.{}", shown(&name));
    problems.keep(&section, check_group_name(&name));
    let raw = problems.required(&section, raw, anything)?;
    let path = |key: &str| format!("{section}.{key}");
    let role = problems.required(&path("role"), raw.role, |text| check_role(&text, &name));
    // If the role is wrong, the other keys are checked against the lower limits.
    let likely = role.or(role_of(&name)).unwrap_or(NodeRole::Worker);
    let limits = Limits::of(likely, &name);
    let count = problems.required(&path("initialCount"), raw.initial_count, |count| {
        limits.count.check(count).map_err(|problem| match likely {
            NodeRole::ControlPlane => format!("{problem} (more control planes are not supported yet)"),
            NodeRole::Worker => problem,
        })
    });
    let vcpus = problems.optional(&path("vcpus"), raw.vcpus, defaults::VCPUS, |count| {
        limits.vcpus.check(count)
    });
    let memory = defaults::memory_mib(likely);
    let memory_mib = problems.optional(&path("memoryMiB"), raw.memory_mib, memory, |mib| {
        limits.memory_mib.check(mib)
    });
    let disk = defaults::STATE_DISK_GB;
    let state_disk_gb = problems.optional(&path("stateDiskSizeGB"), raw.state_disk_gb, disk, |gb| {
        limits.state_disk_gb.check(gb)
    });
    problems.refuse(&section, &raw.unknown, known::GROUP);
    Some(NodeGroup {
        role: role?,
        count: count?,
        vcpus: vcpus?,
        memory_mib: memory_mib?,
        state_disk_gb: state_disk_gb?,
        name,
    })
}

/// The limits of a group's numbers.
struct Limits {
    count: Within,
    vcpus: Within,
    memory_mib: Within,
    state_disk_gb: Within,
}

/// From least to most.
struct Within(u32, u32);

impl Limits {
    fn of(role: NodeRole, group: &str) -> Self {
        // kubeadm's own minimum for a control plane is 2 processors and 1700 MiB.
        let (least_count, least_vcpus, least_memory) = match role {
            NodeRole::ControlPlane => (u32::from(group == CONTROL_PLANES), 2, 2048),
            NodeRole::Worker => (0, 1, 1024),
        };
        Self {
            count: Within(least_count, most_of(role)),
            vcpus: Within(least_vcpus, 64),
            memory_mib: Within(least_memory, 1 << 20),
            state_disk_gb: Within(8, 16_384),
        }
    }
}

fn most_of(role: NodeRole) -> u32 {
    match role {
        NodeRole::ControlPlane => MAX_CONTROL_PLANES,
        NodeRole::Worker => MAX_WORKERS,
    }
}

impl Within {
    fn check(&self, value: u64) -> Result<u32, String> {
        let &Self(least, most) = self;
        let fits = u32::try_from(value).ok().filter(|value| (least..=most).contains(value));
        fits.ok_or_else(|| format!("is {value}, expected {self}"))
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(least, most) if least == most => write!(f, "{least}"),
            Self(least, most) => write!(f, "{least} to {most}"),
        }
    }
}

fn check_group_name(name: &str) -> Result<(), String> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-".contains(&c);
    if (1..=MAX_NAME_LEN).contains(&name.len()) && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(format!(
            "is not a valid group name: use 1 to {MAX_NAME_LEN} lower-case letters, digits, '_' and '-'"
        ))
    }
}

fn check_role(text: &str, group: &str) -> Result<NodeRole, String> {
    let role: NodeRole = text.parse().map_err(|error: ParseNodeRoleError| error.to_string())?;
    match role_of(group) {
        Some(expected) if expected != role => Err(format!("is {role}, but this group's role is {expected}")),
        _ => Ok(role),
    }
}

/// The role of a group that every cluster has.
fn role_of(group: &str) -> Option<NodeRole> {
    match group {
        CONTROL_PLANES => Some(NodeRole::ControlPlane),
        WORKERS => Some(NodeRole::Worker),
        _ => None,
    }
}

fn check_provider(raw: Given<raw::Provider>, problems: &mut ConfigProblems) -> Option<ProviderConfig> {
    let raw = problems.required("provider", raw, anything)?;
    problems.refuse("provider", &raw.unknown, known::PROVIDER);
    check_qemu(raw.qemu, problems).map(ProviderConfig::Qemu)
}

fn check_qemu(raw: Given<raw::Qemu>, problems: &mut ConfigProblems) -> Option<QemuConfig> {
    let qemu = problems.required("provider.qemu", raw, anything)?;
    problems.refuse("provider.qemu", &qemu.unknown, known::QEMU);
    let acceleration = problems.optional(
        "provider.qemu.acceleration",
        qemu.acceleration,
        defaults::ACCELERATION,
        check_acceleration,
    );
    let firmware = match qemu.firmware {
        Given::Nothing => Some(None),
        given => problems
            .required("provider.qemu.firmware", given, check_firmware)
            .map(Some),
    };
    let flushes = problems.optional("provider.qemu.flushes", qemu.flushes, true, anything);
    Some(QemuConfig {
        acceleration: acceleration?,
        firmware: firmware?,
        flushes: flushes?,
    })
}

fn check_acceleration(text: String) -> Result<Acceleration, String> {
    match text.as_str() {
        "auto" => Ok(Acceleration::Auto),
        "kvm" => Ok(Acceleration::Kvm),
        "software" => Ok(Acceleration::Software),
        other => Err(format!("{other:?} is unknown: use auto, kvm or software")),
    }
}

fn check_firmware(folder: String) -> Result<PathBuf, &'static str> {
    if folder.is_empty() {
        Err("is empty: expected a folder; or remove the key")
    } else {
        Ok(folder.into())
    }
}

/// For sections, whose keys are checked individually.
fn anything<T>(value: T) -> Result<T, Infallible> {
    Ok(value)
}
