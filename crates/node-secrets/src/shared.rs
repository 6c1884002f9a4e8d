use zeroize::Zeroizing;

/// The files that control planes of a cluster share, below `/etc/kubernetes/pki`: kubeadm's "shared certificates", and the authority of
/// kubelets' serving certificates.
pub const SHARED_FILES: [&str; 10] = [
    "ca.crt",
    "ca.key",
    "etcd/ca.crt",
    "etcd/ca.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "kubelet-ca.crt",
    "kubelet-ca.key",
    "sa.key",
    "sa.pub",
];

/// One of the files that control planes share.
pub struct SharedFile {
    /// One of [`SHARED_FILES`].
    pub name: &'static str,
    /// What it holds. Many of them are private keys.
    pub content: Zeroizing<Vec<u8>>,
}

/// The files of a control plane are not each of [`SHARED_FILES`] once.
#[derive(Debug, thiserror::Error)]
#[error("the control plane's files are {actual:?}, expected each of the {} shared files once", SHARED_FILES.len())]
pub struct SharedFilesError {
    actual: Vec<String>,
}

/// Names are looked up in a list and never used as they are: another name could lead anywhere.
pub(crate) fn known_files(files: Vec<(String, Zeroizing<Vec<u8>>)>) -> Result<Vec<SharedFile>, SharedFilesError> {
    let mut names: Vec<String> = files.iter().map(|(name, _)| name.chars().take(64).collect()).collect();
    names.sort();
    if names != SHARED_FILES {
        return Err(SharedFilesError { actual: names });
    }
    let known = |(name, content): (String, _)| {
        let name = SHARED_FILES.into_iter().find(|known| *known == name)?;
        Some(SharedFile { name, content })
    };
    Ok(files.into_iter().filter_map(known).collect())
}
