use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use cluster_types::Variant;
use digest::{Digest, oci};

use crate::{DEFAULT_KUBERNETES_VERSION, MirrorSource};

/// The values to fill into an example.
#[derive(Clone, Debug)]
pub struct ExampleOptions {
    /// The cluster's name.
    pub name: String,
    /// The folder with the node image.
    pub image: Utf8PathBuf,
    /// How nodes attest.
    pub variant: Variant,
    /// The Kubernetes release.
    pub kubernetes_version: String,
    /// The digest of the mirror's list of components, where it is known.
    pub components_digest: Option<Digest>,
    /// The folder or address with the Kubernetes components.
    pub mirror: MirrorSource,
}

impl Default for ExampleOptions {
    fn default() -> Self {
        Self {
            name: "mini".to_owned(),
            image: "image".into(),
            variant: Variant::ALL[0],
            kubernetes_version: DEFAULT_KUBERNETES_VERSION.to_owned(),
            components_digest: None,
            mirror: MirrorSource::Folder("mirror".into()),
        }
    }
}

/// A commented configuration for a cluster on this machine.
#[must_use]
pub fn example(options: &ExampleOptions) -> String {
    let name = entry("name", &options.name);
    let image = entry("image", &options.image);
    let variant = options.variant;
    let kubernetes_version = entry("kubernetesVersion", &options.kubernetes_version);
    let mirror = entry("mirror", &options.mirror);
    let components_digest = match &options.components_digest {
        Some(digest) => entry("kubernetesComponentsDigest", &oci::format(digest)),
        None => "# kubernetesComponentsDigest: sha256:...".to_owned(),
    };
    format!(
        "\
# The description of a cluster. Relative paths start at the folder of this file.
# Version of this file's format.
version: v5

# Name of the cluster: up to 37 lower-case letters, digits and '-'.
{name}

# Folder with the node image: node.img and reference-values.json, as the image builder writes them.
{image}

# How nodes prove what they run. The image's reference-values.json must be for the same variant.
attestationVariant: {variant}

# Kubernetes release. The mirror must have this one.
{kubernetes_version}

# SHA-256 of components.json, the mirror's list of files. Another list is refused. Required for a mirror at an http(s) address:
# run `sha256sum components.json` where the mirror was filled.
{components_digest}

# Where nodes fetch Kubernetes from: a folder filled by `constellation mirror create`, or the http(s) address of one.
# This program sends the hashes in components.json to the nodes, which check every file against them.
{mirror}

# Addresses of Services. Only used when the cluster is created.
serviceCIDR: 10.96.0.0/12

# Nodes by group. The two groups below are required; others can be added.
nodeGroups:
  control_plane_default:
    role: control-plane
    initialCount: 1 # control planes
    # Virtual processors of each node (at least 2 for control planes).
    vcpus: 2 # control planes
    # Memory of each node.
    memoryMiB: 3072
    # Size of each node's encrypted disk. It takes space only as it is used.
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
    # Folder with OVMF_CODE_4M.fd and OVMF_VARS_4M.fd, if the firmware is not in one of the usual places.
    # firmware: /usr/share/OVMF
    # Whether the nodes' flushes reach the disk. Without them, a crash of this machine destroys the state disks.
    flushes: true
"
    )
}

/// One line of YAML, which any reader takes for this text.
fn entry(key: &str, value: &impl ToString) -> String {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let yaml = serde_saphyr::to_string_with_options(&BTreeMap::from([(key, value.to_string())]), options);
    let yaml = yaml.expect("a text can be written as YAML");
    yaml.trim_end_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::ClusterConfig;

    /// What YAML, shells or addresses treat in a special way, and everything else that can be in a path.
    fn paths() -> impl Strategy<Value = String> {
        let signs = prop::sample::select(
            "'\"\\\n\r\t #:-?,[]{}&*!|>%@`$~/.=<_+\u{85}\u{a0}\u{2028}\u{feff}\u{fffe}"
                .chars()
                .collect::<Vec<_>>(),
        );
        let words = prop::sample::select(vec![
            "no", "0x12", "1e3", "---", "...", "<<", "null", "ftp://", "http:", "${a}", "ü",
        ]);
        let part = prop_oneof![
            signs.prop_map(String::from),
            words.prop_map(str::to_owned),
            any::<char>().prop_map(String::from),
        ];
        // No path holds a zero byte.
        let paths = prop::collection::vec(part, 1..12).prop_map(|parts| parts.concat().replace('\0', ""));
        paths.prop_filter("a path has letters", |path| !path.is_empty())
    }

    fn check(path: &str) {
        let options = ExampleOptions {
            image: path.into(),
            mirror: MirrorSource::Folder(path.into()),
            ..ExampleOptions::default()
        };
        let text = example(&options);
        let config = ClusterConfig::parse(&text, Path::new("/w")).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(config.image.as_os_str(), Path::new("/w").join(path).as_os_str());
        let MirrorSource::Folder(mirror) = config.mirror else {
            panic!("{path:?} became {:?}", config.mirror)
        };
        assert_eq!(mirror, Path::new("/w").join(path));
        assert_eq!(
            text.lines().count(),
            example(&ExampleOptions::default()).lines().count()
        );
    }

    #[test]
    fn the_paths_that_were_refused_are_read_back() {
        for odd in [
            "/x/o'brien",
            "/x/müller",
            "/a b/c",
            "no",
            "x: y",
            "#hash",
            "a\"b",
            "0x12",
            "- a",
            "ftp://x",
        ] {
            check(odd);
        }
    }

    proptest! {
        #[test]
        fn every_path_is_read_back(path in paths()) {
            check(&path);
        }

        #[test]
        fn a_path_of_any_length_stays_on_its_line(path in "[a-z '\\n]{1,400}") {
            check(&path);
        }
    }
}
