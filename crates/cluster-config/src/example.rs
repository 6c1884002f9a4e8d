use crate::DEFAULT_KUBERNETES_VERSION;

/// What an example is filled with.
#[derive(Clone, Debug)]
pub struct ExampleOptions {
    /// The cluster's name.
    pub name: String,
    /// The folder with the node image.
    pub image: String,
    /// The Kubernetes release.
    pub kubernetes_version: String,
    /// The folder or address with the Kubernetes components.
    pub mirror: String,
}

impl Default for ExampleOptions {
    fn default() -> Self {
        Self {
            name: "mini".to_owned(),
            image: "image".to_owned(),
            kubernetes_version: DEFAULT_KUBERNETES_VERSION.to_owned(),
            mirror: "mirror".to_owned(),
        }
    }
}

/// A commented configuration for a cluster on this machine.
#[must_use]
pub fn example(options: &ExampleOptions) -> String {
    let [name, image, kubernetes_version, mirror] = [
        &options.name,
        &options.image,
        &options.kubernetes_version,
        &options.mirror,
    ]
    .map(|text| scalar(text));
    format!(
        "\
# What this cluster is made of. Relative paths start at the folder of this file.
# The form of this file.
version: v5

# Name of the cluster: up to 37 lower-case letters, digits and '-'.
name: {name}

# Folder with the node image: node.img and reference-values.json, as the image builder writes them.
image: {image}

# Kubernetes release. The mirror must hold this one.
kubernetesVersion: {kubernetes_version}

# Where nodes fetch Kubernetes from: a folder filled by `constellation mirror create`, or the http address of one.
# Nodes check every file against components.json, whose hashes this program sends them.
mirror: {mirror}

# Addresses of Services; only used when the cluster is made.
serviceCIDR: 10.96.0.0/12

# Nodes by group. The two groups below must be there; others may be added.
nodeGroups:
  control_plane_default:
    role: control-plane
    initialCount: 1 # control planes
    # Each node has that many virtual processors (control planes at least 2),
    vcpus: 2 # control planes
    # so much memory,
    memoryMiB: 3072
    # and so large an encrypted disk; the space is taken as it is used.
    stateDiskSizeGB: 20 # control planes
  worker_default:
    role: worker
    initialCount: 1 # workers
    vcpus: 2 # workers
    memoryMiB: 2048
    stateDiskSizeGB: 20 # workers

# Where the nodes run: QEMU virtual machines on this machine.
provider:
  qemu:
    # auto (KVM if it works, software emulation otherwise), kvm or software.
    acceleration: auto
    # Folder with OVMF_CODE_4M.fd and OVMF_VARS_4M.fd, where the firmware is not in one of the usual places.
    # firmware: /usr/share/OVMF
    # Whether the nodes' flushes reach the disk. Without them a crash of this machine loses the state disks.
    flushes: true
"
    )
}

/// Plain where YAML reads the same text back, quoted otherwise.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') && text.chars().all(plain) && !is_word(text) {
        text.to_owned()
    } else {
        // Every JSON string is a double-quoted YAML scalar.
        format!("\"{}\"", text.escape_default())
    }
}

/// Words that some YAML reader takes for a truth value or nothing.
fn is_word(text: &str) -> bool {
    ["y", "n", "yes", "no", "on", "off", "true", "false", "null"].contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{ClusterConfig, MirrorSource};

    #[test]
    fn what_is_filled_in_is_read_back() {
        for odd in ["/a b/c", "no", "x: y", "#hash", "a\"b", "0x12", "- a"] {
            let options = ExampleOptions {
                image: odd.to_owned(),
                mirror: odd.to_owned(),
                ..ExampleOptions::default()
            };
            let config = ClusterConfig::parse(&example(&options), Path::new("/w")).unwrap();
            assert_eq!(config.image, Path::new("/w").join(odd));
            assert_eq!(config.mirror, MirrorSource::Folder(Path::new("/w").join(odd)));
        }
    }
}
