//! What Evidence is bound to: the exact bytes that go into a report, and nothing else does.
//!
//! A session binding is
//!
//! ```text
//! SHA-512( field(domain) ‖ field(direction) ‖ field(exporter) ‖ field(SHA-256(attester's leaf))
//!        ‖ field(SHA-256(verifier's leaf)) ‖ field(nonce) ‖ field(purpose) ‖ field(sealing key) )
//! ```
//!
//! where `field(x)` is the length of `x` as four big-endian bytes, then `x`; `domain` is
//! `constellation attested-tls v2`, `direction` is `client` or `server`, the attester's side of the handshake,
//! `purpose` is the name of a [`Purpose`], and `sealing key` is empty if the attester offers none. Direction and both leaves
//! stop reflection and relay, the exporter ties it to the session, the nonce makes it fresh, and the purpose keeps it from serving
//! another one. Secrets for this attester are encrypted to the sealing key, whoever carries them.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA512, digest};
use aws_lc_rs::rand;
use cluster_types::SealingPublicKey;
use digest::Digest;

use crate::Evidence;

const SESSION_DOMAIN: &str = "constellation attested-tls v2";
const STANDALONE_DOMAIN: &str = "constellation standalone evidence v1";

/// Random bytes by which a verifier knows that Evidence was made for it and just now (RFC 9334 section 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce([u8; 32]);

impl Nonce {
    /// Draws a fresh nonce.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).expect("the system's random source does not fail after boot");
        Self(bytes)
    }

    /// A nonce that was drawn before, here or by a peer.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes as they are sent.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What an attested session is for. Evidence for one purpose never serves another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// The CLI makes a node the first of a cluster.
    Init,
    /// A new node asks for its join ticket.
    Join,
    /// A node that rebooted asks for its disk key.
    Rejoin,
    /// The operator hands a waiting node its disk key.
    Recover,
    /// Anyone verifies a node.
    Verify,
}

/// A purpose that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a purpose of attested TLS")]
pub struct UnknownPurpose(String);

impl Purpose {
    /// The name on the wire and in the binding.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Join => "join",
            Self::Rejoin => "rejoin",
            Self::Recover => "recover",
            Self::Verify => "verify",
        }
    }
}

impl FromStr for Purpose {
    type Err = UnknownPurpose;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Init, Self::Join, Self::Rejoin, Self::Recover, Self::Verify]
            .into_iter()
            .find(|purpose| purpose.as_str() == text)
            .ok_or_else(|| UnknownPurpose(text.chars().take(32).collect()))
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The attester's side of the TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The attester opened the connection.
    Client,
    /// The attester accepted the connection.
    Server,
}

impl Direction {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Everything that identifies one session to both of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionParts {
    /// The attester's side.
    pub direction: Direction,
    /// TLS exporter of the session (RFC 8446 section 7.5).
    pub exporter: [u8; 32],
    /// SHA-256 of the attester's leaf certificate, DER.
    pub attester_leaf: Digest,
    /// SHA-256 of the verifier's leaf certificate, DER.
    pub verifier_leaf: Digest,
    /// The verifier's nonce.
    pub nonce: Nonce,
    /// What the session is for.
    pub purpose: Purpose,
    /// To which secrets for the attester are sealed, if it offers a key.
    pub sealing_key: Option<SealingPublicKey>,
}

/// Evidence with all that it is bound to, so that a verifier outside the session can appraise it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEvidence {
    /// What it must be bound to.
    pub parts: SessionParts,
    /// As its attester made it.
    pub evidence: Evidence,
}

/// What Evidence is to be bound to, in full: an attester that has a fixed purpose sees whether this is it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindingParts {
    /// One TLS session.
    Session(SessionParts),
    /// A nonce alone, for Evidence that is fetched without attested TLS.
    Nonce(Nonce),
}

impl BindingParts {
    /// The bytes that the Evidence must carry.
    #[must_use]
    pub fn binding(&self) -> ReportBinding {
        match self {
            Self::Session(parts) => ReportBinding::for_session(parts),
            Self::Nonce(nonce) => ReportBinding::standalone(nonce),
        }
    }
}

/// The 64 bytes that a report carries, or the first half of them where it has no room for more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReportBinding([u8; 64]);

impl ReportBinding {
    /// Binds to one TLS session.
    #[must_use]
    pub fn for_session(parts: &SessionParts) -> Self {
        let sealing_key = parts.sealing_key.as_ref().map(SealingPublicKey::as_bytes);
        Self::of_fields(&[
            SESSION_DOMAIN.as_bytes(),
            parts.direction.as_str().as_bytes(),
            &parts.exporter,
            parts.attester_leaf.as_bytes(),
            parts.verifier_leaf.as_bytes(),
            parts.nonce.as_bytes(),
            parts.purpose.as_str().as_bytes(),
            sealing_key.map_or(&[], |key| &key[..]),
        ])
    }

    /// Binds to a nonce alone, for Evidence that is fetched without attested TLS.
    ///
    /// # Security
    /// Shows that a node with this state answered this nonce, not who the peer of any connection is. Nothing is released
    /// for it.
    #[must_use]
    pub fn standalone(nonce: &Nonce) -> Self {
        Self::of_fields(&[
            STANDALONE_DOMAIN.as_bytes(),
            nonce.as_bytes(),
            Purpose::Verify.as_str().as_bytes(),
        ])
    }

    fn of_fields(fields: &[&[u8]]) -> Self {
        let mut message = Vec::new();
        for field in fields {
            let length = u32::try_from(field.len()).expect("fields are short constants, digests and nonces");
            message.extend_from_slice(&length.to_be_bytes());
            message.extend_from_slice(field);
        }
        let digest = digest(&SHA512, &message);
        Self(digest.as_ref().try_into().expect("SHA-512 gives 64 bytes (FIPS 180-4)"))
    }

    /// All 64 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }

    /// The first 32 bytes, for a technology whose reports carry no more.
    #[must_use]
    pub fn first_half(&self) -> &[u8; 32] {
        self.0.first_chunk().expect("64 bytes begin with 32")
    }
}

impl SessionEvidence {
    /// The bytes that the Evidence must carry.
    #[must_use]
    pub fn binding(&self) -> ReportBinding {
        ReportBinding::for_session(&self.parts)
    }
}

impl fmt::Debug for ReportBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReportBinding({})", hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(byte: u8) -> Digest {
        Digest::new([byte; 32])
    }

    fn check(change: impl FnOnce(&mut SessionParts)) -> ReportBinding {
        let mut parts = SessionParts {
            direction: Direction::Client,
            exporter: [1; 32],
            attester_leaf: leaf(2),
            verifier_leaf: leaf(3),
            nonce: Nonce::new([4; 32]),
            purpose: Purpose::Join,
            sealing_key: Some(SealingPublicKey::new([5; 32])),
        };
        change(&mut parts);
        ReportBinding::for_session(&parts)
    }

    /// Computed with Python's hashlib from the encoding in the module's documentation.
    #[test]
    fn encoding_matches_the_vectors() {
        assert_eq!(hex::encode(check(|_| {}).as_bytes()), SESSION_VECTOR);
        let without_key = check(|parts| parts.sealing_key = None);
        assert_eq!(hex::encode(without_key.as_bytes()), SESSION_WITHOUT_KEY_VECTOR);
        let standalone = ReportBinding::standalone(&Nonce::new([4; 32]));
        assert_eq!(hex::encode(standalone.as_bytes()), STANDALONE_VECTOR);
    }

    const SESSION_VECTOR: &str = "919a2dbe26d7ff7a5681bc403b5fb51f20c2cdb06820233fbd20e591000f3e5b\
        0281b6bca6fd5ecabb2bb8c85393322c0bf3f3fafcca3a4a747efcb5d12cb9ee";
    const SESSION_WITHOUT_KEY_VECTOR: &str = "f1aee7bec95a067596a370ff85660115a7693ba8154e0cd1aad3838113c6bf0a\
        82904a8f96a8be68e4376e83038e40e25e1dcc6238edbaa661b68a70823691ca";
    const STANDALONE_VECTOR: &str = "9868874c43eb908497bb85e76742b4400d0e0d8cc6a5a25b94960597cd4380ce\
        a2919a81ffbaf6f9e34c0e5ea4684b4c1bf03ddc7953f86b91e74b541cfd9da8";

    #[test]
    fn every_part_changes_the_binding() {
        let other_key = SealingPublicKey::new([9; 32]);
        let changed = [
            check(|_| {}),
            check(|parts| parts.direction = Direction::Server),
            check(|parts| parts.exporter = [9; 32]),
            check(|parts| parts.attester_leaf = leaf(9)),
            check(|parts| parts.verifier_leaf = leaf(9)),
            check(|parts| std::mem::swap(&mut parts.attester_leaf, &mut parts.verifier_leaf)),
            check(|parts| parts.nonce = Nonce::new([9; 32])),
            check(|parts| parts.purpose = Purpose::Rejoin),
            check(|parts| parts.sealing_key = None),
            check(|parts| parts.sealing_key = Some(other_key)),
        ];
        for (i, one) in changed.iter().enumerate() {
            for other in &changed[..i] {
                assert_ne!(one, other);
            }
        }
    }

    #[test]
    fn purposes_survive_a_round_trip() {
        for purpose in [
            Purpose::Init,
            Purpose::Join,
            Purpose::Rejoin,
            Purpose::Recover,
            Purpose::Verify,
        ] {
            assert_eq!(purpose.as_str().parse::<Purpose>().unwrap(), purpose);
        }
        assert!("JOIN".parse::<Purpose>().is_err());
    }
}
