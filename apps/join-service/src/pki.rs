//! The cluster's certificate authorities, as kubeadm stores them on this control plane.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use digest::{Digest, oci};
use secret::SecretBytes;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;
use zeroize::Zeroizing;

/// The files that make a node a control plane, in the ticket's order. Names are paths below the folder.
const CONTROL_PLANE_FILES: [&str; 8] = [
    "ca.crt",
    "ca.key",
    "sa.key",
    "sa.pub",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "etcd/ca.crt",
    "etcd/ca.key",
];

const API_SERVER: &str = "apiserver.crt";

/// The folder `/etc/kubernetes/pki`. It is read again for each ticket, so renewed files are used.
#[derive(Clone)]
pub(crate) struct Pki(PathBuf);

/// One of the PKI's files is unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadPkiError {
    #[error("cannot read {name} of the cluster's PKI")]
    Read { name: &'static str, source: io::Error },
    #[error("{name} of the cluster's PKI is not a PEM certificate")]
    Malformed { name: &'static str },
}

impl Pki {
    /// Fails at the start, and not with the first node, if nothing can be signed.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, ReadPkiError> {
        let pki = Self(folder);
        pki.ca_pin()?;
        pki.api_server_addresses()?;
        pki.control_plane_files()?;
        Ok(pki)
    }

    pub(crate) fn ca_certificate(&self) -> Result<String, ReadPkiError> {
        let bytes = self.read("ca.crt")?;
        String::from_utf8(bytes).map_err(|_| ReadPkiError::Malformed { name: "ca.crt" })
    }

    /// The private key of the cluster's CA, as PEM.
    pub(crate) fn ca_key(&self) -> Result<Zeroizing<String>, ReadPkiError> {
        let bytes = self.read("ca.key")?;
        String::from_utf8(bytes)
            .map(Zeroizing::new)
            .map_err(|_| ReadPkiError::Malformed { name: "ca.key" })
    }

    /// What kubeadm recognises the cluster by: `sha256:` and the hash of the CA's public key.
    pub(crate) fn ca_pin(&self) -> Result<String, ReadPkiError> {
        let malformed = || ReadPkiError::Malformed { name: "ca.crt" };
        let bytes = self.read("ca.crt")?;
        let (_, pem) = parse_x509_pem(&bytes).map_err(|_| malformed())?;
        let certificate = pem.parse_x509().map_err(|_| malformed())?;
        Ok(oci::format(&Digest::of(certificate.public_key().raw)))
    }

    /// The IPv4 addresses in the API server's own certificate.
    pub(crate) fn api_server_addresses(&self) -> Result<Vec<Ipv4Addr>, ReadPkiError> {
        let malformed = || ReadPkiError::Malformed { name: API_SERVER };
        let bytes = self.read(API_SERVER)?;
        let (_, pem) = parse_x509_pem(&bytes).map_err(|_| malformed())?;
        let certificate = pem.parse_x509().map_err(|_| malformed())?;
        let names = certificate.subject_alternative_name().map_err(|_| malformed())?;
        let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
        let address = |name: &GeneralName<'_>| match name {
            GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes).ok().map(Ipv4Addr::from),
            _ => None,
        };
        Ok(names.iter().filter_map(address).collect())
    }

    pub(crate) fn control_plane_files(&self) -> Result<Vec<(&'static str, SecretBytes)>, ReadPkiError> {
        CONTROL_PLANE_FILES
            .into_iter()
            .map(|name| Ok((name, SecretBytes::from_vec(self.read(name)?))))
            .collect()
    }

    fn read(&self, name: &'static str) -> Result<Vec<u8>, ReadPkiError> {
        std::fs::read(self.0.join(name)).map_err(|source| ReadPkiError::Read { name, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_is_the_hash_of_the_public_key() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), certificate.pem()).unwrap();
        let expected = Digest::of(&rcgen::PublicKeyData::subject_public_key_info(&key));
        assert_eq!(Pki(folder.path().into()).ca_pin().unwrap(), oci::format(&expected));
    }

    #[test]
    fn each_file_that_is_missing_or_broken_is_named() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etcd")).unwrap();
        let names = || CONTROL_PLANE_FILES.into_iter().chain([API_SERVER]);
        for name in names() {
            std::fs::write(folder.path().join(name), certificate.pem()).unwrap();
        }
        Pki::open(folder.path().into()).unwrap();
        for name in names() {
            std::fs::remove_file(folder.path().join(name)).unwrap();
            let error = Pki::open(folder.path().into()).err().unwrap();
            assert_eq!(error.to_string(), format!("cannot read {name} of the cluster's PKI"));
            std::fs::write(folder.path().join(name), certificate.pem()).unwrap();
        }
        for name in ["ca.crt", API_SERVER] {
            std::fs::write(folder.path().join(name), "nonsense").unwrap();
            let error = Pki::open(folder.path().into()).err().unwrap();
            assert_eq!(
                error.to_string(),
                format!("{name} of the cluster's PKI is not a PEM certificate")
            );
            std::fs::write(folder.path().join(name), certificate.pem()).unwrap();
        }
    }
}
