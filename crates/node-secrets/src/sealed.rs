use attestation::ReportBinding;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use cluster_types::{KeyServicePublicKey, SealingPublicKey};
use prost::Message;
use rustls::crypto::hpke::{EncapsulatedSecret, HpkePublicKey};
use zeroize::Zeroizing;

use crate::key::suite;
use crate::{KeyServiceKey, NodeSecrets, ParseNodeSecretsError, SealingKey};

/// Longer ones are refused, in bytes. A worker's have about 300, a control plane's 5000.
const MAX_LEN: usize = 64 * 1024;
/// Of DHKEM(X25519, HKDF-SHA256), in bytes (RFC 9180 section 7.1).
const ENCAPSULATED_KEY_LEN: usize = 32;
/// HPKE's `info`, and the beginning of what is signed.
const DOMAIN: &[u8] = b"constellation node secrets v1";

/// The secrets cannot be sealed to this key.
#[derive(Debug, thiserror::Error)]
#[error("the node's sealing key is not usable")]
pub struct SealError(#[source] rustls::Error);

/// The node gets no secrets.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Longer than any real ones.
    #[error("the sealed secrets have {actual} bytes, at most {MAX_LEN} are accepted")]
    TooLong {
        /// Length in bytes.
        actual: usize,
    },
    /// Not the protobuf message.
    #[error("the sealed secrets are malformed")]
    Encoding(#[from] prost::DecodeError),
    /// HPKE's encapsulated key has another length.
    #[error("the encapsulated key of the sealed secrets has {0} bytes, expected 32")]
    EncapsulatedKey(usize),
    /// Changed, for another session, or made by someone who is not the key service.
    #[error("key service {0} did not seal these secrets for this session")]
    NotFromKeyService(KeyServicePublicKey),
    /// Sealed to another node or for another session.
    #[error("the secrets are not sealed to this node")]
    Sealed(#[source] rustls::Error),
    /// What was sealed.
    #[error(transparent)]
    Secrets(#[from] ParseNodeSecretsError),
}

#[derive(Clone, PartialEq, Message)]
struct SealedMessage {
    #[prost(bytes = "vec", tag = "1")]
    encapsulated_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    ciphertext: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    signature: Vec<u8>,
}

impl SealedMessage {
    /// The session, and with it the nonce, is part of it: sealed secrets cannot be kept for another session. Each part but the last has a
    /// fixed length.
    fn signed_bytes(&self, binding: &ReportBinding) -> Vec<u8> {
        [DOMAIN, binding.as_bytes(), &self.encapsulated_key, &self.ciphertext].concat()
    }
}

/// Seals secrets to the session whose Evidence has this binding: the protobuf message
/// `{ 1: encapsulated key, 2: ciphertext, 3: Ed25519 signature over domain, binding, encapsulated key and ciphertext }`. `info` of HPKE
/// is the domain, `aad` the binding.
///
/// # Errors
/// When the key is not a point of X25519 that can be used.
pub fn seal(
    secrets: &NodeSecrets,
    to: &SealingPublicKey,
    binding: &ReportBinding,
    signer: &KeyServiceKey,
) -> Result<Vec<u8>, SealError> {
    let to = HpkePublicKey(to.as_bytes().to_vec());
    let sealed = suite().seal(DOMAIN, binding.as_bytes(), &secrets.encode(), &to);
    let (EncapsulatedSecret(encapsulated_key), ciphertext) = sealed.map_err(SealError)?;
    let mut message = SealedMessage {
        encapsulated_key,
        ciphertext,
        signature: Vec::new(),
    };
    message.signature = signer.0.sign(&message.signed_bytes(binding)).as_ref().to_vec();
    Ok(message.encode_to_vec())
}

/// Opens what this key service sealed to this key in the session whose Evidence has this binding.
///
/// # Errors
/// When anything of that is not so.
pub fn open(
    sealed: &[u8],
    key: &SealingKey,
    binding: &ReportBinding,
    key_service: &KeyServicePublicKey,
) -> Result<NodeSecrets, OpenError> {
    if sealed.len() > MAX_LEN {
        return Err(OpenError::TooLong { actual: sealed.len() });
    }
    let message = SealedMessage::decode(sealed)?;
    if message.encapsulated_key.len() != ENCAPSULATED_KEY_LEN {
        return Err(OpenError::EncapsulatedKey(message.encapsulated_key.len()));
    }
    UnparsedPublicKey::new(&ED25519, key_service.as_bytes())
        .verify(&message.signed_bytes(binding), &message.signature)
        .map_err(|_| OpenError::NotFromKeyService(*key_service))?;
    let encapsulated = EncapsulatedSecret(message.encapsulated_key);
    let opened = suite().open(
        &encapsulated,
        DOMAIN,
        binding.as_bytes(),
        &message.ciphertext,
        &key.private,
    );
    let opened = Zeroizing::new(opened.map_err(OpenError::Sealed)?);
    Ok(NodeSecrets::parse(&opened)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use attestation::{Direction, Nonce, Purpose, SessionParts};
    use digest::Digest;
    use key_derivation::MasterSecret;
    use secret::{MeasurementSecret, StateDiskKey};

    use super::*;
    use crate::{ControlPlaneSecrets, SHARED_FILES, SharedFile};

    pub(crate) const DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c3301";

    pub(crate) fn secrets() -> NodeSecrets {
        NodeSecrets {
            disk: DISK.parse().unwrap(),
            state_disk_key: StateDiskKey::from_bytes([1; 32]),
            measurement_secret: MeasurementSecret::from_bytes([2; 32]),
            policy: Digest::new([5; 32]),
            cluster_ca: b"certificate".to_vec().into(),
            control_plane: Some(ControlPlaneSecrets {
                master_secret: master_secret(3),
                files: SHARED_FILES.map(file).into(),
            }),
        }
    }

    fn file(name: &'static str) -> SharedFile {
        SharedFile {
            name,
            content: Zeroizing::new(name.as_bytes().to_vec()),
        }
    }

    fn master_secret(byte: u8) -> MasterSecret {
        MasterSecret::new(Zeroizing::new(vec![byte; 32]), vec![4; 32]).unwrap()
    }

    fn key_service() -> KeyServiceKey {
        KeyServiceKey::of(&master_secret(3))
    }

    fn session(purpose: Purpose, nonce: u8) -> ReportBinding {
        ReportBinding::for_session(&SessionParts {
            direction: Direction::Client,
            exporter: [1; 32],
            attester_leaf: Digest::new([2; 32]),
            verifier_leaf: Digest::new([3; 32]),
            nonce: Nonce::new([nonce; 32]),
            purpose,
            sealing_key: None,
        })
    }

    fn this_session() -> ReportBinding {
        session(Purpose::Join, 4)
    }

    /// Sealed for this session, then changed.
    fn check(change: impl FnOnce(&mut SealedMessage)) -> Result<NodeSecrets, OpenError> {
        let key = SealingKey::generate();
        let sealed = seal(&secrets(), &key.public(), &this_session(), &key_service()).unwrap();
        let mut message = SealedMessage::decode(&sealed[..]).unwrap();
        change(&mut message);
        open(&message.encode_to_vec(), &key, &this_session(), &key_service().public())
    }

    #[test]
    fn the_node_of_the_session_opens_its_secrets() {
        let opened = check(|_| {}).unwrap();
        assert_eq!(*opened.encode(), *secrets().encode());
    }

    #[test]
    fn nothing_that_was_sealed_can_be_read_without_the_key() {
        let key = SealingKey::generate();
        let sealed = seal(&secrets(), &key.public(), &this_session(), &key_service()).unwrap();
        assert!(
            !sealed
                .windows(8)
                .any(|part| [[1; 8], [2; 8], [3; 8]].contains(&part.try_into().unwrap()))
        );
        let other = SealingKey::generate();
        let opened = open(&sealed, &other, &this_session(), &key_service().public());
        assert!(matches!(opened, Err(OpenError::Sealed(_))), "{opened:?}");
    }

    /// The join service passes it on.
    #[test]
    fn each_change_on_the_way_is_noticed() {
        let changes: [fn(&mut SealedMessage); 4] = [
            |sealed| sealed.encapsulated_key[0] ^= 1,
            |sealed| sealed.ciphertext[0] ^= 1,
            |sealed| sealed.signature[0] ^= 1,
            |sealed| sealed.signature.clear(),
        ];
        for change in changes {
            let opened = check(change);
            assert!(matches!(opened, Err(OpenError::NotFromKeyService(_))), "{opened:?}");
        }
    }

    /// What is signed would be the same.
    #[test]
    fn a_byte_does_not_move_from_one_part_to_the_next() {
        let opened = check(|sealed| {
            let moved = sealed.encapsulated_key.pop().unwrap();
            sealed.ciphertext.insert(0, moved);
        });
        assert!(matches!(opened, Err(OpenError::EncapsulatedKey(31))), "{opened:?}");
    }

    #[test]
    fn another_key_services_secrets_are_refused() {
        let key = SealingKey::generate();
        let other = KeyServiceKey::of(&master_secret(9));
        let sealed = seal(&secrets(), &key.public(), &this_session(), &other).unwrap();
        let opened = open(&sealed, &key, &this_session(), &key_service().public());
        assert!(matches!(opened, Err(OpenError::NotFromKeyService(_))), "{opened:?}");
    }

    #[test]
    fn secrets_of_another_session_are_refused() {
        let key = SealingKey::generate();
        for other in [session(Purpose::Rejoin, 4), session(Purpose::Join, 5)] {
            let sealed = seal(&secrets(), &key.public(), &other, &key_service()).unwrap();
            let opened = open(&sealed, &key, &this_session(), &key_service().public());
            assert!(matches!(opened, Err(OpenError::NotFromKeyService(_))), "{opened:?}");
        }
    }

    /// Even a valid signature does not let secrets of another session be opened.
    #[test]
    fn the_session_is_part_of_the_sealing_too() {
        let key = SealingKey::generate();
        let sealed = seal(&secrets(), &key.public(), &session(Purpose::Rejoin, 4), &key_service()).unwrap();
        let mut message = SealedMessage::decode(&sealed[..]).unwrap();
        let signature = key_service().0.sign(&message.signed_bytes(&this_session()));
        message.signature = signature.as_ref().to_vec();
        let opened = open(&message.encode_to_vec(), &key, &this_session(), &key_service().public());
        assert!(matches!(opened, Err(OpenError::Sealed(_))), "{opened:?}");
    }

    /// X25519 with a point of small order gives the same secret to everyone (RFC 7748 section 6.1).
    #[test]
    fn nothing_is_sealed_to_a_point_of_small_order() {
        let zero = SealingPublicKey::new([0; 32]);
        assert!(seal(&secrets(), &zero, &this_session(), &key_service()).is_err());
    }

    #[test]
    fn bytes_that_are_not_sealed_secrets_are_refused() {
        let (key, key_service) = (SealingKey::generate(), key_service().public());
        let check = |bytes: &[u8]| open(bytes, &key, &this_session(), &key_service).unwrap_err();
        assert!(matches!(check(&[0xff]), OpenError::Encoding(_)));
        assert!(matches!(check(&[]), OpenError::EncapsulatedKey(0)));
        assert!(matches!(check(&vec![0; MAX_LEN + 1]), OpenError::TooLong { .. }));
    }

    /// Made once by this code: a format that changes unnoticed locks nodes of the version before out.
    #[test]
    fn a_vector_is_opened() {
        let private = hex::decode(VECTOR_KEY).unwrap();
        let key = SealingKey {
            public: SealingPublicKey::new([0; 32]),
            private: private.into(),
        };
        let sealed = hex::decode(VECTOR).unwrap();
        let opened = open(&sealed, &key, &this_session(), &key_service().public()).unwrap();
        assert_eq!(*opened.encode(), *vector_secrets().encode());
    }

    /// What a worker gets: it has nothing of a control plane.
    fn vector_secrets() -> NodeSecrets {
        NodeSecrets {
            control_plane: None,
            ..secrets()
        }
    }

    const VECTOR_KEY: &str = "0f4cf690f3acd5e86eae3348e66f5447c442c0a9ff96952adccc49726aeef89d";
    const VECTOR: &str = "0a202c8940ae9ab7a75cedd7feab01bf133a443510392af48cb9d4576d10ba61ca2112a90117f34a7334fd29390ac3b8a0\
        bc9227e4dfbd89c83afa8a51896f2766eed7e7f8691b2e8ae012fefe93c86b5b6ad48e7e4baeb2921dd07f9ca85bf0a90c2e\
        a0d3953ac9ae7aa5792412c19f2085563857c26c4e876861ed3bf30db315574bf01af1c5dbbf0f6ed8f516b57ccb889b18d0\
        b925a446be20cc1d2d4c26e433ea9408ea92013ddc8a44a39c6770c08539457b5407740176108369bb6dd128ef0b6d69219c\
        0ae6cd3cb9102b1a40b9e8a96340e99a942de6678fc8c6afc32f6c7b69b900abb65a404dacd67d4a57c5a0c2d2f9b8a47804\
        0200b76b326add28b0d1699972bbfc45488f50a3411801";
}
