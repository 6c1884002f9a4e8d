use aws_lc_rs::rand;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::Kek;

/// Keys with fewer bytes are refused.
const MIN_KEY_LEN: usize = 16;
/// Salts with fewer bytes are refused.
const MIN_SALT_LEN: usize = 32;
/// Length of the keys and salts that we generate, in bytes.
const GENERATED_LEN: usize = 32;
/// Longer keys and salts are refused, in bytes.
const MAX_LEN: usize = 1024;

/// The root of all keys of a cluster: a secret and its salt.
///
/// The CLI generates it once and the operator keeps it. Control planes hold it in memory and on their encrypted state disk.
pub struct MasterSecret {
    key: Zeroizing<Vec<u8>>,
    salt: Vec<u8>,
}

/// A master secret file or message that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ParseMasterSecretError {
    /// It is not the documented JSON.
    // The parser's own message could quote the secret, so it is dropped.
    #[error("the master secret is not JSON of the form {{\"key\":\"<base64>\",\"salt\":\"<base64>\"}}")]
    Form,
    /// Wrong number of key bytes.
    #[error("key of the master secret has {0} bytes, expected {MIN_KEY_LEN} to {MAX_LEN}")]
    KeyLength(usize),
    /// Wrong number of salt bytes.
    #[error("salt of the master secret has {0} bytes, expected {MIN_SALT_LEN} to {MAX_LEN}")]
    SaltLength(usize),
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Document {
    key: String,
    salt: String,
}

impl MasterSecret {
    /// Generates a secret and salt from the system's random source.
    #[must_use]
    pub fn generate() -> Self {
        let mut key = Zeroizing::new(vec![0; GENERATED_LEN]);
        let mut salt = vec![0; GENERATED_LEN];
        rand::fill(&mut key).expect("the system's random source does not fail after boot");
        rand::fill(&mut salt).expect("the system's random source does not fail after boot");
        Self { key, salt }
    }

    /// Takes a key and a salt that came over an attested channel.
    ///
    /// # Errors
    /// When one of them has a length that no cluster uses.
    pub fn new(key: Zeroizing<Vec<u8>>, salt: Vec<u8>) -> Result<Self, ParseMasterSecretError> {
        if !(MIN_KEY_LEN..=MAX_LEN).contains(&key.len()) {
            return Err(ParseMasterSecretError::KeyLength(key.len()));
        }
        if !(MIN_SALT_LEN..=MAX_LEN).contains(&salt.len()) {
            return Err(ParseMasterSecretError::SaltLength(salt.len()));
        }
        Ok(Self { key, salt })
    }

    /// Parses the file `constellation-mastersecret.json`.
    ///
    /// # Errors
    /// When the bytes are malformed, or a part has a length that no cluster uses.
    pub fn parse(json: &[u8]) -> Result<Self, ParseMasterSecretError> {
        let document: Document = serde_json::from_slice(json).map_err(|_| ParseMasterSecretError::Form)?;
        let key = BASE64_STANDARD
            .decode(&document.key)
            .map_err(|_| ParseMasterSecretError::Form)?;
        let salt = BASE64_STANDARD
            .decode(&document.salt)
            .map_err(|_| ParseMasterSecretError::Form)?;
        Self::new(Zeroizing::new(key), salt)
    }

    /// Renders the file `constellation-mastersecret.json`; the caller gives it mode 0600.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<String> {
        let document = Document {
            key: BASE64_STANDARD.encode(&*self.key),
            salt: BASE64_STANDARD.encode(&self.salt),
        };
        Zeroizing::new(serde_json::to_string(&document).expect("two strings are JSON"))
    }

    /// The key that derives all others.
    #[must_use]
    pub fn kek(&self) -> Kek {
        Kek::extract(&self.key, &self.salt)
    }

    /// A copy, for a control plane.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self {
            key: self.key.clone(),
            salt: self.salt.clone(),
        }
    }

    /// The secret bytes, for the one message that carries them to a control plane.
    #[must_use]
    pub fn expose_key(&self) -> &[u8] {
        &self.key
    }

    /// The salt, which is not secret.
    #[must_use]
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }
}

impl std::fmt::Debug for MasterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_survives_a_round_trip() {
        let secret = MasterSecret::generate();
        let again = MasterSecret::parse(secret.to_json().as_bytes()).unwrap();
        assert_eq!((again.expose_key(), again.salt()), (secret.expose_key(), secret.salt()));
    }

    #[test]
    fn short_parts_are_refused() {
        let make = |key, salt| MasterSecret::new(Zeroizing::new(vec![1; key]), vec![2; salt]);
        assert!(matches!(make(15, 32), Err(ParseMasterSecretError::KeyLength(15))));
        assert!(matches!(make(32, 31), Err(ParseMasterSecretError::SaltLength(31))));
        assert!(make(16, 32).is_ok());
    }

    #[test]
    fn errors_do_not_quote_the_secret() {
        let error = MasterSecret::parse(br#"{"key":"hunter2!","salt":12}"#).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn two_generated_secrets_differ() {
        assert_ne!(
            MasterSecret::generate().expose_key(),
            MasterSecret::generate().expose_key()
        );
    }
}
