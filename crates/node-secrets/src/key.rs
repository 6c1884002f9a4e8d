use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use cluster_types::{KeyServicePublicKey, SealingPublicKey};
use key_derivation::{Label, MasterSecret};
use rustls::crypto::hpke::{Hpke, HpkePrivateKey};

/// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM (RFC 9180 section 7). The session around it has a post-quantum exchange.
pub(crate) fn suite() -> &'static dyn Hpke {
    rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256
}

/// A key pair that a node makes for one session, to which its secrets are sealed.
pub struct SealingKey {
    pub(crate) public: SealingPublicKey,
    pub(crate) private: HpkePrivateKey,
}

impl SealingKey {
    /// Makes a new one.
    ///
    /// # Panics
    /// Never: the system's random source does not fail after boot.
    #[must_use]
    pub fn generate() -> Self {
        let (public, private) = suite().generate_key_pair().expect("X25519 keys can be generated");
        let public = public.0.as_slice().try_into();
        Self {
            public: public.expect("an X25519 public key has 32 bytes (RFC 7748)"),
            private,
        }
    }

    /// What the Evidence covers.
    #[must_use]
    pub fn public(&self) -> SealingPublicKey {
        self.public
    }
}

/// The key pair with which the key service signs.
pub struct KeyServiceKey(pub(crate) Ed25519KeyPair);

impl KeyServiceKey {
    /// Derives it from the master secret.
    ///
    /// # Panics
    /// Never: every 32 bytes are a seed.
    #[must_use]
    pub fn of(secret: &MasterSecret) -> Self {
        let seed = secret.kek().derive_array(Label::KeyServiceIdentity);
        Self(Ed25519KeyPair::from_seed_unchecked(&*seed).expect("every 32 bytes are an Ed25519 seed (RFC 8032)"))
    }

    /// What the cluster policy names.
    ///
    /// # Panics
    /// Never: a public key has 32 bytes.
    #[must_use]
    pub fn public(&self) -> KeyServicePublicKey {
        let key = self.0.public_key().as_ref().try_into();
        key.expect("an Ed25519 public key has 32 bytes (RFC 8032)")
    }
}
