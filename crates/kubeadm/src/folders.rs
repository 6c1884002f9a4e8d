use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use atomic_file::Access;

/// Where kubeadm and kubelet keep their files, below a root folder that only tests change.
#[derive(Clone, Debug)]
pub struct Folders {
    root: PathBuf,
}

impl Folders {
    pub(crate) const CA_CERT: &str = "/etc/kubernetes/pki/ca.crt";
    pub(crate) const CA_KEY: &str = "/etc/kubernetes/pki/ca.key";
    /// The authority of kubelets' serving certificates.
    pub(crate) const KUBELET_CA_CERT: &str = "/etc/kubernetes/pki/kubelet-ca.crt";
    pub(crate) const KUBELET_CA_KEY: &str = "/etc/kubernetes/pki/kubelet-ca.key";
    pub(crate) const AUDIT_POLICY: &str = "/etc/kubernetes/audit-policy.yaml";
    pub(crate) const ADMISSION: &str = "/etc/kubernetes/admission.yaml";
    pub(crate) const PATCHES: &str = "/etc/kubernetes/patches";

    /// Files below this folder; on a node it is `/`.
    #[must_use]
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The path of a file given by its absolute name on a node.
    #[must_use]
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The certificate of the cluster's CA, PEM.
    pub(crate) fn ca_cert(&self) -> PathBuf {
        self.path(Self::CA_CERT)
    }

    pub(crate) fn kubernetes(&self, name: &str) -> PathBuf {
        self.path("/etc/kubernetes").join(name)
    }

    /// In memory, so that a crash leaves nothing behind on a disk.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.path("/run/constellation")
    }
}

/// Replaces a file, and makes the folder it is in.
pub(crate) fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    fs::create_dir_all(path.parent().expect("our files are in folders"))?;
    atomic_file::replace(path, bytes, Access::Mode(mode))
}
