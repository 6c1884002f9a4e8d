//! What is built, in which version.

use clap::ValueEnum;

/// The minor versions that can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Minor {
    /// The one before.
    #[value(name = "v1.34")]
    V1_34,
    /// The newest that containerd 1.7 of Debian trixie can run.
    #[value(name = "v1.35")]
    V1_35,
}

/// The versions that belong to one minor version. They are those of its kubeadm
/// (`cmd/kubeadm/app/constants/constants.go`); building a mirror compares them with what kubeadm says.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    /// The folder below `upstream/`, also the minor version's name.
    pub(super) minor: &'static str,
    /// The patch release of Kubernetes that is built.
    pub(super) kubernetes: &'static str,
    /// When that module version was published, which the programs report as their build date.
    published: &'static str,
    /// The etcd that this release's kubeadm runs.
    pub(super) etcd: &'static str,
    /// The CoreDNS that this release's kubeadm runs.
    pub(super) coredns: &'static str,
}

impl Recipe {
    /// The recipe for a minor version.
    pub(super) fn new(minor: Minor) -> Self {
        match minor {
            Minor::V1_34 => Self {
                minor: "v1.34",
                kubernetes: "v1.34.4",
                published: "2026-02-10T12:53:36Z",
                etcd: "v3.6.5",
                coredns: "v1.12.1",
            },
            Minor::V1_35 => Self {
                minor: "v1.35",
                kubernetes: "v1.35.4",
                published: "2026-04-15T18:01:22Z",
                etcd: "v3.6.6",
                coredns: "v1.13.1",
            },
        }
    }

    /// All modules of a mirror.
    pub(super) fn modules(&self) -> Vec<Module> {
        let in_minor = |title| format!("{}/{title}", self.minor);
        vec![
            Module::new("kubernetes", self.kubernetes, in_minor("kubernetes"), &KUBERNETES)
                .with_link_flags(self.version_stamps()),
            Module::new("etcd", self.etcd, in_minor("etcd"), &ETCD),
            Module::new(
                "coredns",
                self.coredns,
                in_minor("coredns"),
                &[("coredns", "github.com/coredns/coredns")],
            ),
            Module::new(
                "cni-plugins",
                CNI_PLUGINS_VERSION,
                "network/cni-plugins".into(),
                &CNI_PLUGINS,
            ),
            Module::new(
                "flannel",
                FLANNEL_VERSION,
                "network/flannel".into(),
                &[("flanneld", ".")],
            )
            .with_link_flags(format!("-X {FLANNEL}/pkg/version.Version={FLANNEL_VERSION}"))
            .with_source(Source::Copy {
                module: FLANNEL,
                without: FLANNEL_WITHOUT,
            }),
            Module::new(
                "cri-tools",
                CRI_TOOLS_VERSION,
                "cri-tools".into(),
                &[("crictl", CRICTL)],
            )
            .with_link_flags(format!(
                "-X sigs.k8s.io/cri-tools/pkg/version.Version={CRI_TOOLS_VERSION}"
            )),
            Module::new("pause", PAUSE_VERSION, "pause".into(), &[("pause", ".")]),
        ]
    }

    /// The full name of one of Kubernetes' own images.
    pub(super) fn image_name(&self, image: &str) -> String {
        match image {
            "coredns" => format!("{REGISTRY}/coredns/coredns:{}", self.coredns),
            "etcd" => format!("{REGISTRY}/etcd:{}-0", self.etcd.trim_start_matches('v')),
            "pause" => format!("{REGISTRY}/pause:{PAUSE_VERSION}"),
            "flannel" => format!("{FLANNEL_IMAGE}:{FLANNEL_VERSION}"),
            program => format!("{REGISTRY}/{program}:{}", self.kubernetes),
        }
    }

    /// The full names of all images.
    pub(super) fn image_names(&self) -> Vec<String> {
        IMAGES.iter().map(|image| self.image_name(image)).collect()
    }

    /// Upstream's release build sets these variables; without them kubeadm refuses to compare versions
    /// (`hack/lib/version.sh`).
    fn version_stamps(&self) -> String {
        let minor = self.minor.trim_start_matches("v1.");
        let stamps = [
            ("gitVersion", self.kubernetes),
            ("gitMajor", "1"),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
            // A module's archive does not say which commit it was made from.
            ("gitCommit", "unknown"),
            ("buildDate", self.published),
        ];
        let packages = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"];
        let flags = packages
            .iter()
            .flat_map(|package| stamps.map(|(name, value)| format!("-X {package}.{name}={value}")));
        flags.collect::<Vec<_>>().join(" ")
    }
}

/// Programs that are built together from one module folder.
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// What it is called in messages.
    pub(super) title: &'static str,
    /// Its upstream version.
    pub(super) version: &'static str,
    /// The folder with `go.mod` and `go.sum`, below `upstream/`.
    pub(super) folder: String,
    /// Its programs: our name and the Go package.
    pub(super) programs: Vec<(&'static str, &'static str)>,
    /// Where the main module's files are.
    pub(super) source: Source,
    link_flags: String,
}

/// Where the main module's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// In the checkout.
    Folder,
    /// In a copy of a published module, which the folder's `go.sum` pins, with some lines of `main.go` left out.
    Copy {
        module: &'static str,
        without: &'static [&'static str],
    },
}

impl Module {
    fn new(
        title: &'static str,
        version: &'static str,
        folder: String,
        programs: &[(&'static str, &'static str)],
    ) -> Self {
        let link_flags = String::new();
        Self {
            title,
            version,
            folder,
            programs: programs.to_vec(),
            source: Source::Folder,
            link_flags,
        }
    }

    fn with_link_flags(self, link_flags: String) -> Self {
        Self { link_flags, ..self }
    }

    fn with_source(self, source: Source) -> Self {
        Self { source, ..self }
    }

    /// The names of its programs.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.programs.iter().map(|(name, _)| *name)
    }

    /// The same module with the named programs only.
    pub(super) fn only(&self, names: &[String]) -> Self {
        let wanted = self
            .programs
            .iter()
            .filter(|(name, _)| names.iter().any(|wanted| wanted == name));
        Self {
            programs: wanted.copied().collect(),
            ..self.clone()
        }
    }

    /// The linker's flags: no debug information, no build id, and the version stamps.
    pub(super) fn link_flags(&self) -> String {
        format!("-s -w -buildid= {}", self.link_flags).trim_end().to_owned()
    }
}

/// The images of a mirror.
pub(super) const IMAGES: [&str; 8] = [
    "coredns",
    "etcd",
    "flannel",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "pause",
];

/// The programs of a mirror that are files. Nodes take those that run there (`needed_by` in `apps/bootstrapper/src/node.rs`).
pub(super) const PROGRAMS: [&str; 4] = ["crictl", "kubeadm", "kubectl", "kubelet"];

const KUBERNETES: [(&str, &str); 7] = [
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kubeadm", "k8s.io/kubernetes/cmd/kubeadm"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
];

const ETCD: [(&str, &str); 2] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
];

/// What flannel's and most other network configurations call; `flannel` is ours.
pub(super) const CNI_PLUGINS: [(&str, &str); 9] = [
    (
        "bandwidth",
        "github.com/containernetworking/plugins/plugins/meta/bandwidth",
    ),
    ("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
    (
        "firewall",
        "github.com/containernetworking/plugins/plugins/meta/firewall",
    ),
    ("flannel", "./flannel"),
    (
        "host-local",
        "github.com/containernetworking/plugins/plugins/ipam/host-local",
    ),
    (
        "loopback",
        "github.com/containernetworking/plugins/plugins/main/loopback",
    ),
    ("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
    ("ptp", "github.com/containernetworking/plugins/plugins/main/ptp"),
    ("tuning", "github.com/containernetworking/plugins/plugins/meta/tuning"),
];

const FLANNEL: &str = "github.com/flannel-io/flannel";

/// One backend needs a module that the proxy does not serve, the other is written in C and sends plain text.
const FLANNEL_WITHOUT: &[&str] = &[
    "\t_ \"github.com/flannel-io/flannel/pkg/backend/tencentvpc\"",
    "\t_ \"github.com/flannel-io/flannel/pkg/backend/udp\"",
];

const CRICTL: &str = "sigs.k8s.io/cri-tools/cmd/crictl";

/// The newest that the module proxy serves for both minor versions; what it speaks, CRI v1, is the same in all of them.
const CRI_TOOLS_VERSION: &str = "v1.34.0";
const CNI_PLUGINS_VERSION: &str = "v1.9.1";
const FLANNEL_VERSION: &str = "v0.28.10";
/// Ours behaves as upstream's of this version does.
const PAUSE_VERSION: &str = "3.10.1";
/// What kubeadm calls its images; nothing is fetched from there.
const REGISTRY: &str = "registry.k8s.io";
/// What flannel's own manifest calls its image, so that a mirror of upstream's images has the same name.
const FLANNEL_IMAGE: &str = "ghcr.io/flannel-io/flannel";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn module_folders_require_the_versions_named_here() {
        for minor in [Minor::V1_34, Minor::V1_35] {
            for module in Recipe::new(minor)
                .modules()
                .iter()
                .filter(|module| module.title != "pause")
            {
                let path = super::super::workspace_root()
                    .join("upstream")
                    .join(&module.folder)
                    .join("go.mod");
                let text = fs::read_to_string(&path).unwrap();
                let version = format!(" {}", module.version);
                let required = text
                    .lines()
                    .any(|line| line.contains(module.title.trim_start_matches("cni-")) && line.contains(&version));
                assert!(required, "{} does not require {}", path.display(), module.version);
            }
        }
    }

    #[test]
    fn names_images_as_kubeadm_does() {
        let expected = [
            "registry.k8s.io/coredns/coredns:v1.13.1",
            "registry.k8s.io/etcd:3.6.6-0",
            "ghcr.io/flannel-io/flannel:v0.28.10",
            "registry.k8s.io/kube-apiserver:v1.35.4",
            "registry.k8s.io/kube-controller-manager:v1.35.4",
            "registry.k8s.io/kube-proxy:v1.35.4",
            "registry.k8s.io/kube-scheduler:v1.35.4",
            "registry.k8s.io/pause:3.10.1",
        ];
        assert_eq!(Recipe::new(Minor::V1_35).image_names(), expected);
    }
}
