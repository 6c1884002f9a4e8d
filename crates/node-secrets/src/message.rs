use cluster_types::{DiskUuid, ParseDiskUuidError};
use digest::Digest;
use key_derivation::{MasterSecret, ParseMasterSecretError};
use prost::Message;
use rustls::pki_types::CertificateDer;
use secret::{MeasurementSecret, StateDiskKey};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::shared::{SharedFile, SharedFilesError, known_files};

/// The secrets of one node.
pub struct NodeSecrets {
    /// Its state disk.
    pub disk: DiskUuid,
    /// The key of that disk.
    pub state_disk_key: StateDiskKey,
    /// From which the cluster id is derived.
    pub measurement_secret: MeasurementSecret,
    /// SHA-256 of the signed policy by which they were released. It is not secret, but the node takes no other one with them.
    pub policy: Digest,
    /// The certificate of the cluster's CA, by which the node knows the API server. Not secret either.
    pub cluster_ca: CertificateDer<'static>,
    /// For control planes only.
    pub control_plane: Option<ControlPlaneSecrets>,
}

/// What makes a node a control plane.
pub struct ControlPlaneSecrets {
    /// From which all keys of the cluster are derived.
    pub master_secret: MasterSecret,
    /// Each of [`SHARED_FILES`](crate::SHARED_FILES) once.
    pub files: Vec<SharedFile>,
}

/// The bytes are not the secrets of a node.
#[derive(Debug, thiserror::Error)]
pub enum ParseNodeSecretsError {
    /// Not the protobuf message.
    #[error("the node's secrets are malformed")]
    Encoding,
    /// The name of the disk.
    #[error("the disk's UUID in the node's secrets is malformed")]
    Disk(#[from] ParseDiskUuidError),
    /// A key or digest of another length.
    #[error("{what} has {actual} bytes, expected 32")]
    Length {
        /// What it is, as in the message.
        what: &'static str,
        /// Its length in bytes.
        actual: usize,
    },
    /// The certificate of the CA.
    #[error("the node's secrets have no CA certificate")]
    NoClusterCa,
    /// The master secret.
    #[error("the node's secrets have an unusable master secret")]
    MasterSecret(#[from] ParseMasterSecretError),
    /// The names of the shared files.
    #[error(transparent)]
    Files(#[from] SharedFilesError),
}

#[derive(Clone, PartialEq, Message, Zeroize, ZeroizeOnDrop)]
struct SecretsMessage {
    #[prost(string, tag = "1")]
    disk_uuid: String,
    #[prost(bytes = "vec", tag = "2")]
    state_disk_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    measurement_secret: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    policy: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    cluster_ca: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    control_plane: Option<ControlPlaneMessage>,
}

#[derive(Clone, PartialEq, Message, Zeroize, ZeroizeOnDrop)]
struct ControlPlaneMessage {
    #[prost(bytes = "vec", tag = "1")]
    master_secret: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    master_secret_salt: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    files: Vec<FileMessage>,
}

#[derive(Clone, PartialEq, Message, Zeroize, ZeroizeOnDrop)]
struct FileMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
}

impl NodeSecrets {
    /// The protobuf message `{ 1: disk's UUID, 2: its key, 3: measurement secret, 4: SHA-256 of the policy,
    /// 5: { 1: master secret, 2: its salt, 3: repeated { 1: name, 2: content } }, 6: certificate of the CA }`.
    pub(crate) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let Self {
            disk,
            state_disk_key,
            measurement_secret,
            policy,
            cluster_ca,
            control_plane,
        } = self;
        let message = SecretsMessage {
            disk_uuid: disk.to_string(),
            state_disk_key: state_disk_key.expose().to_vec(),
            measurement_secret: measurement_secret.expose().to_vec(),
            policy: policy.as_bytes().to_vec(),
            cluster_ca: cluster_ca.to_vec(),
            control_plane: control_plane.as_ref().map(ControlPlaneMessage::from),
        };
        Zeroizing::new(message.encode_to_vec())
    }

    /// Reads secrets that were sealed.
    ///
    /// # Errors
    /// When the bytes are not the message, or a part is not what a cluster uses.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseNodeSecretsError> {
        let mut message = SecretsMessage::decode(bytes).map_err(|_| ParseNodeSecretsError::Encoding)?;
        let length = |what, bytes: &[u8]| ParseNodeSecretsError::Length {
            what,
            actual: bytes.len(),
        };
        let SecretsMessage {
            disk_uuid,
            state_disk_key,
            measurement_secret,
            policy,
            cluster_ca,
            control_plane,
        } = &mut message;
        Ok(Self {
            disk: disk_uuid.parse()?,
            state_disk_key: StateDiskKey::from_slice(state_disk_key)
                .ok_or_else(|| length("the state disk key", state_disk_key))?,
            measurement_secret: MeasurementSecret::from_slice(measurement_secret)
                .ok_or_else(|| length("the measurement secret", measurement_secret))?,
            policy: <[u8; 32]>::try_from(&**policy)
                .map(Digest::new)
                .map_err(|_| length("the policy's digest", policy))?,
            cluster_ca: ca_certificate(cluster_ca)?,
            control_plane: control_plane.as_mut().map(ControlPlaneSecrets::parse).transpose()?,
        })
    }
}

/// The key service has parsed it.
fn ca_certificate(der: &[u8]) -> Result<CertificateDer<'static>, ParseNodeSecretsError> {
    if der.is_empty() {
        return Err(ParseNodeSecretsError::NoClusterCa);
    }
    Ok(der.to_vec().into())
}

impl ControlPlaneSecrets {
    fn parse(message: &mut ControlPlaneMessage) -> Result<Self, ParseNodeSecretsError> {
        let ControlPlaneMessage {
            master_secret,
            master_secret_salt,
            files,
        } = message;
        let key = Zeroizing::new(std::mem::take(master_secret));
        let files = files
            .iter_mut()
            .map(|FileMessage { name, content }| (std::mem::take(name), Zeroizing::new(std::mem::take(content))));
        Ok(Self {
            master_secret: MasterSecret::new(key, std::mem::take(master_secret_salt))?,
            files: known_files(files.collect())?,
        })
    }
}

impl From<&ControlPlaneSecrets> for ControlPlaneMessage {
    fn from(secrets: &ControlPlaneSecrets) -> Self {
        let ControlPlaneSecrets { master_secret, files } = secrets;
        let file = |SharedFile { name, content }: &SharedFile| FileMessage {
            name: (*name).to_owned(),
            content: content.to_vec(),
        };
        Self {
            master_secret: master_secret.expose_key().to_vec(),
            master_secret_salt: master_secret.salt().to_vec(),
            files: files.iter().map(file).collect(),
        }
    }
}

impl std::fmt::Debug for NodeSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeSecrets")
            .field("disk", &self.disk)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SHARED_FILES;
    use crate::sealed::tests::{DISK, secrets};

    #[test]
    fn secrets_are_read_as_they_were_written() {
        let read = NodeSecrets::parse(&secrets().encode()).unwrap();
        assert_eq!(read.disk.to_string(), DISK);
        assert_eq!(read.state_disk_key.expose(), &[1; 32]);
        assert_eq!(read.measurement_secret.expose(), &[2; 32]);
        assert_eq!(read.policy, Digest::new([5; 32]));
        assert_eq!(&*read.cluster_ca, b"certificate");
        let control_plane = read.control_plane.unwrap();
        assert_eq!(control_plane.master_secret.expose_key(), [3; 32]);
        assert_eq!(control_plane.files.len(), SHARED_FILES.len());
        assert_eq!(*control_plane.files[0].content, *SHARED_FILES[0].as_bytes());

        let of_worker = NodeSecrets {
            control_plane: None,
            ..secrets()
        };
        assert!(NodeSecrets::parse(&of_worker.encode()).unwrap().control_plane.is_none());
    }

    #[test]
    fn bad_input_to_each_field_gives_one_error_that_names_it() {
        type Change = fn(&mut SecretsMessage);
        let cases: [(Change, &str); 13] = [
            (
                |m| m.disk_uuid.clear(),
                "the disk's UUID in the node's secrets is malformed",
            ),
            (|m| m.state_disk_key.clear(), "the state disk key has 0 bytes"),
            (|m| m.state_disk_key.push(1), "the state disk key has 33 bytes"),
            (|m| m.measurement_secret.clear(), "the measurement secret has 0 bytes"),
            (|m| m.measurement_secret.push(1), "the measurement secret has 33 bytes"),
            (|m| m.policy.clear(), "the policy's digest has 0 bytes"),
            (|m| m.cluster_ca.clear(), "the node's secrets have no CA certificate"),
            (
                |m| m.control_plane.as_mut().unwrap().master_secret.clear(),
                "the node's secrets have an unusable master secret",
            ),
            (
                |m| m.control_plane.as_mut().unwrap().master_secret_salt.clear(),
                "the node's secrets have an unusable master secret",
            ),
            (
                |m| m.control_plane.as_mut().unwrap().files.clear(),
                "the control plane's files are []",
            ),
            (
                |m| m.control_plane.as_mut().unwrap().files[0].name = "../../shadow".into(),
                "the control plane's files are [\"../../shadow\",",
            ),
            (
                |m| m.control_plane.as_mut().unwrap().files[0].name = "sa.key".into(),
                "the control plane's files are [",
            ),
            (
                |m| drop(m.control_plane.as_mut().unwrap().files.pop()),
                "the control plane's files are [",
            ),
        ];
        for (change, expected) in cases {
            let mut message = SecretsMessage::decode(&secrets().encode()[..]).unwrap();
            change(&mut message);
            let error = NodeSecrets::parse(&message.encode_to_vec()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(matches!(
            NodeSecrets::parse(&[0xff]),
            Err(ParseNodeSecretsError::Encoding)
        ));
    }

    #[test]
    fn debug_shows_no_secret() {
        let (shown, secrets) = (format!("{:?}", secrets()), secrets());
        let expected = format!(
            "NodeSecrets {{ disk: {:?}, policy: {:?}, .. }}",
            secrets.disk, secrets.policy
        );
        assert_eq!(shown, expected);
    }
}
