//! The operator's key pair, and what only it can sign.
//!
//! Its seed is derived from the master secret, and every node measures the public key before its first attested session: what this
//! key signed is the operator's word, wherever it was stored.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use cluster_types::OperatorPublicKey;
use key_derivation::{Label, MasterSecret};

/// The key pair with which the operator signs.
pub struct OperatorKey(Ed25519KeyPair);

/// What a signature is for. The domain is signed with the message, so that a signature of one kind is not valid for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureDomain {
    /// That a machine may have a role.
    RoleGrant,
    /// Whom a cluster admits, and what its nodes install.
    ClusterPolicy,
    /// That the operator is at the other end of a session with a node whose state disk is closed.
    Recovery,
}

/// The operator did not sign this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not signed by operator {0}")]
pub struct InvalidSignature(pub OperatorPublicKey);

impl OperatorKey {
    /// Derives the key pair from the master secret.
    #[must_use]
    pub fn of(secret: &MasterSecret) -> Self {
        Self::from_seed(&secret.kek().derive_array(Label::OperatorIdentity))
    }

    /// Derives the key pair from its seed.
    ///
    /// # Panics
    /// Never: every 32 bytes are a seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed).expect("every 32 bytes are an Ed25519 seed (RFC 8032)"))
    }

    /// The public key.
    ///
    /// # Panics
    /// Never: a public key has 32 bytes.
    #[must_use]
    pub fn public(&self) -> OperatorPublicKey {
        let key = self.0.public_key().as_ref().try_into();
        OperatorPublicKey::new(key.expect("an Ed25519 public key has 32 bytes"))
    }

    /// The Ed25519 signature (RFC 8032) over the domain, followed by the message.
    #[must_use]
    pub fn sign(&self, domain: SignatureDomain, message: &[u8]) -> Vec<u8> {
        self.0.sign(&domain.signed_bytes(message)).as_ref().to_vec()
    }
}

impl SignatureDomain {
    /// Checks that this operator signed the message in this domain.
    ///
    /// # Errors
    /// When the operator did not.
    pub fn verify(
        self,
        operator: &OperatorPublicKey,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        UnparsedPublicKey::new(&ED25519, operator.as_bytes())
            .verify(&self.signed_bytes(message), signature)
            .map_err(|_| InvalidSignature(*operator))
    }

    /// None is the beginning of another.
    const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::RoleGrant => b"constellation role grant v1",
            Self::ClusterPolicy => b"constellation cluster policy v1",
            Self::Recovery => b"constellation recovery v1",
        }
    }

    fn signed_bytes(self, message: &[u8]) -> Vec<u8> {
        [self.as_bytes(), message].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator() -> OperatorKey {
        OperatorKey::from_seed(&[7; 32])
    }

    #[test]
    fn the_operators_signature_is_valid_for_this_message_and_domain_alone() {
        let (key, message) = (operator().public(), b"a message");
        let signature = operator().sign(SignatureDomain::RoleGrant, message);
        assert!(SignatureDomain::RoleGrant.verify(&key, message, &signature).is_ok());
        assert!(SignatureDomain::RoleGrant.verify(&key, b"another", &signature).is_err());
        assert!(
            SignatureDomain::ClusterPolicy
                .verify(&key, message, &signature)
                .is_err()
        );
        assert!(
            SignatureDomain::RoleGrant
                .verify(&key, message, &signature[1..])
                .is_err()
        );
        let other = OperatorKey::from_seed(&[8; 32]).public();
        assert!(SignatureDomain::RoleGrant.verify(&other, message, &signature).is_err());
    }

    #[test]
    fn no_domain_is_the_beginning_of_another() {
        let domains = [
            SignatureDomain::RoleGrant,
            SignatureDomain::ClusterPolicy,
            SignatureDomain::Recovery,
        ];
        for (one, other) in domains.iter().flat_map(|one| domains.map(|other| (*one, other))) {
            assert!(
                one == other || !one.as_bytes().starts_with(other.as_bytes()),
                "{one:?} {other:?}"
            );
        }
    }
}
