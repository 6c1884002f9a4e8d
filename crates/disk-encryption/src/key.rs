use aws_lc_rs::rand;
use secret::StateDiskKey;

secret::secret_array! {
    /// Opens the state disk of a new node until its ticket brings a [`StateDiskKey`]. Made on the node, kept in memory.
    pub struct EphemeralKey(32);
}

/// The system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct MakeKeyError;

/// A key that can open a state disk.
#[derive(Clone, Copy, Debug)]
pub enum DiskKey<'a> {
    /// Of a node that has not joined yet.
    Ephemeral(&'a EphemeralKey),
    /// Of a node of a cluster.
    State(&'a StateDiskKey),
}

impl EphemeralKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn random() -> Result<Self, MakeKeyError> {
        let mut bytes = secret::zeroize::Zeroizing::new([0; Self::LEN]);
        rand::fill(bytes.as_mut_slice()).map_err(|_| MakeKeyError)?;
        Ok(Self::from_bytes(*bytes))
    }
}

impl DiskKey<'_> {
    pub(crate) fn expose(&self) -> &[u8; 32] {
        match self {
            Self::Ephemeral(key) => key.expose(),
            Self::State(key) => key.expose(),
        }
    }
}
