//! Where the API server beside this service is reached. No node gets these addresses.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

/// The file with the API server's certificate. It is read again for each ticket, so a renewed one is used.
#[derive(Clone)]
pub(crate) struct ApiServerCertificate(PathBuf);

/// The certificate is unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadCertificateError {
    #[error("cannot read the API server's certificate")]
    Read(#[from] io::Error),
    #[error("the API server's certificate is not one in PEM")]
    Malformed,
}

impl ApiServerCertificate {
    /// Fails at the start, and not with the first node, if it is missing.
    pub(crate) fn open(file: PathBuf) -> Result<Self, ReadCertificateError> {
        let certificate = Self(file);
        certificate.addresses()?;
        Ok(certificate)
    }

    /// The IPv4 addresses in it.
    pub(crate) fn addresses(&self) -> Result<Vec<Ipv4Addr>, ReadCertificateError> {
        let bytes = std::fs::read(&self.0)?;
        let malformed = ReadCertificateError::Malformed;
        let Ok((_, pem)) = parse_x509_pem(&bytes) else {
            return Err(malformed);
        };
        let Ok(certificate) = pem.parse_x509() else {
            return Err(malformed);
        };
        let Ok(names) = certificate.subject_alternative_name() else {
            return Err(malformed);
        };
        let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
        let address = |name: &GeneralName<'_>| match name {
            GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes).ok().map(Ipv4Addr::from),
            _ => None,
        };
        Ok(names.iter().filter_map(address).collect())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_certificate_that_is_missing_or_broken_is_refused_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("apiserver.crt");
        let open = || ApiServerCertificate::open(file.clone());
        assert!(matches!(open().err(), Some(ReadCertificateError::Read(_))));
        std::fs::write(&file, "nonsense").unwrap();
        assert!(matches!(open().err(), Some(ReadCertificateError::Malformed)));
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::DnsName("kubernetes".try_into().unwrap()),
            SanType::IpAddress([10, 42, 1, 100].into()),
        ];
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        std::fs::write(&file, certificate.pem()).unwrap();
        assert_eq!(open().unwrap().addresses().unwrap(), [Ipv4Addr::new(10, 42, 1, 100)]);
    }
}
