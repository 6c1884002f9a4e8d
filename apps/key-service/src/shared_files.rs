use std::io;
use std::path::PathBuf;

use node_secrets::{SHARED_FILES, SharedFile};
use rustls::pki_types::CertificateDer;
use x509_parser::pem::parse_x509_pem;
use zeroize::Zeroizing;

/// The folder with the files that control planes share. They are read when one is admitted, and not kept in memory.
pub(crate) struct SharedFiles(PathBuf);

/// A node cannot get all that it needs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadSharedFileError {
    #[error("cannot read {name} of the cluster's shared files")]
    Read { name: &'static str, source: io::Error },
    #[error("{CA} of the cluster's shared files is not a PEM certificate")]
    Ca,
}

const CA: &str = "ca.crt";

impl SharedFiles {
    /// Fails at the start, and not with the first control plane, if a file is missing.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, ReadSharedFileError> {
        let files = Self(folder);
        files.read()?;
        files.cluster_ca()?;
        Ok(files)
    }

    pub(crate) fn read(&self) -> Result<Vec<SharedFile>, ReadSharedFileError> {
        let read = |name| {
            let content = Zeroizing::new(self.read_one(name)?);
            Ok(SharedFile { name, content })
        };
        SHARED_FILES.into_iter().map(read).collect()
    }

    /// The certificate of the cluster's CA, by which a node knows the API server.
    pub(crate) fn cluster_ca(&self) -> Result<CertificateDer<'static>, ReadSharedFileError> {
        let bytes = self.read_one(CA)?;
        let (_, pem) = parse_x509_pem(&bytes).map_err(|_| ReadSharedFileError::Ca)?;
        pem.parse_x509().map_err(|_| ReadSharedFileError::Ca)?;
        Ok(pem.contents.into())
    }

    fn read_one(&self, name: &'static str) -> Result<Vec<u8>, ReadSharedFileError> {
        std::fs::read(self.0.join(name)).map_err(|source| ReadSharedFileError::Read { name, source })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn each_file_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etcd")).unwrap();
        let key = KeyPair::generate().unwrap();
        let ca = CertificateParams::default().self_signed(&key).unwrap();
        let certificate = ca.pem();
        for name in SHARED_FILES {
            std::fs::write(folder.path().join(name), &certificate).unwrap();
        }
        let open = || SharedFiles::open(folder.path().into());
        let files = open().unwrap();
        assert_eq!(files.read().unwrap().len(), SHARED_FILES.len());
        assert_eq!(files.cluster_ca().unwrap(), *ca.der());
        for name in SHARED_FILES {
            std::fs::remove_file(folder.path().join(name)).unwrap();
            let error = open().err().unwrap().to_string();
            assert_eq!(error, format!("cannot read {name} of the cluster's shared files"));
            std::fs::write(folder.path().join(name), &certificate).unwrap();
        }
        std::fs::write(folder.path().join(CA), "nonsense").unwrap();
        assert!(matches!(open().err(), Some(ReadSharedFileError::Ca)));
    }
}
