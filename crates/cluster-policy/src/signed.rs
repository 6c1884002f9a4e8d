use std::collections::BTreeSet;
use std::ops::Deref;

use attestation::{Expectations, ExpectedStatements, SetUpVerifierError, Variants, Verifier, any_of};
use base64::prelude::{BASE64_STANDARD, Engine};
use cluster_types::{ClusterId, KeyServicePublicKey, OperatorPublicKey, ParseKubernetesVersionError, WrongLength};
use digest::Digest;
use kubernetes_components::ComponentList;
use measurements::{ParseReferenceValuesError, ReferenceValues};
use operator_key::{InvalidSignature, OperatorKey, SignatureDomain};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::{AnotherCluster, ClusterPolicy, Release, UnlistedRelease};

/// Longer policies are refused, in bytes. A real one has about 3 KiB.
pub(crate) const MAX_LEN: usize = 256 * 1024;
/// More images or releases are refused. An update has two of each.
const MAX_ENTRIES: usize = 8;

/// A policy with a valid signature of whoever it names as its signer. What it says is worth nothing before the signer is known:
/// [`believe`](Self::believe).
///
/// In documents it is base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SignedPolicy {
    bytes: Vec<u8>,
    signer: OperatorPublicKey,
    policy: ClusterPolicy,
}

/// A policy that the operator signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BelievedPolicy(SignedPolicy);

/// The policy is another operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster policy is signed by operator {signer}, not by the expected one")]
pub struct AnotherOperator {
    /// Who signed it.
    pub signer: OperatorPublicKey,
}

/// A policy with which a node does not become part of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum RefusePolicyError {
    /// It is not a policy.
    #[error(transparent)]
    Parse(#[from] ParsePolicyError),
    /// Another operator signed it.
    #[error(transparent)]
    Operator(#[from] AnotherOperator),
    /// It is for another cluster.
    #[error(transparent)]
    Cluster(#[from] AnotherCluster),
    /// It does not list what the node is to install.
    #[error(transparent)]
    Release(#[from] UnlistedRelease),
}

/// The bytes are not a signed policy.
#[derive(Debug, thiserror::Error)]
pub enum ParsePolicyError {
    /// Longer than any real policy.
    #[error("the cluster policy has {actual} bytes, at most {MAX_LEN} are accepted")]
    TooLong {
        /// Length in bytes.
        actual: usize,
    },
    /// In a document: not base64.
    #[error("the cluster policy is not base64")]
    Base64,
    /// Not the protobuf messages of [`BelievedPolicy::sign`], in their one encoding. A later version may have more fields.
    #[error("the cluster policy is malformed")]
    Malformed,
    /// A key or an id is too short or too long.
    #[error("the cluster policy is malformed")]
    Length(#[from] WrongLength),
    /// Changed after it was signed, or signed by someone else than it says.
    #[error("the cluster policy's signature is invalid")]
    Signature(#[from] InvalidSignature),
    /// The number of images or releases.
    #[error("the cluster policy has {actual} {what}, expected 1 to {MAX_ENTRIES}")]
    Number {
        /// Images or releases.
        what: &'static str,
        /// How many there are.
        actual: usize,
    },
    /// Serials begin with 1, and no grant can have the serial of a later policy.
    #[error("the cluster policy has serial {serial} and accepts grants from serial {min_grant_serial}")]
    Serial {
        /// The policy's serial.
        serial: u64,
        /// The least serial of a grant.
        min_grant_serial: u64,
    },
    /// The reference values of an image.
    #[error("the cluster policy has unusable reference values")]
    Image(#[from] ParseReferenceValuesError),
    /// Images of several variants: Evidence of the weakest would be enough.
    #[error("the cluster policy has images of several attestation variants")]
    SeveralVariants,
    /// The version of a release.
    #[error("the cluster policy has a malformed Kubernetes version")]
    Version(#[from] ParseKubernetesVersionError),
    /// A version with several lists of components.
    #[error("the cluster policy lists one Kubernetes version twice")]
    VersionTwice,
}

#[derive(Clone, PartialEq, Message)]
struct SignedMessage {
    #[prost(bytes = "vec", tag = "1")]
    policy: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    operator: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    signature: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PolicyMessage {
    #[prost(bytes = "vec", tag = "1")]
    cluster: Vec<u8>,
    #[prost(uint64, tag = "2")]
    serial: u64,
    #[prost(bytes = "vec", repeated, tag = "3")]
    images: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "4")]
    releases: Vec<ReleaseMessage>,
    #[prost(uint64, tag = "5")]
    min_grant_serial: u64,
    #[prost(bytes = "vec", tag = "6")]
    key_service: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ReleaseMessage {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(bytes = "vec", tag = "2")]
    components: Vec<u8>,
}

impl SignedPolicy {
    /// Parses a policy and checks that it is signed by the key that it names.
    ///
    /// # Errors
    /// When it is malformed, or changed after it was signed.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParsePolicyError> {
        if bytes.len() > MAX_LEN {
            return Err(ParsePolicyError::TooLong { actual: bytes.len() });
        }
        let SignedMessage {
            policy,
            operator,
            signature,
        } = decode(bytes)?;
        let signer = OperatorPublicKey::try_from(operator.as_slice())?;
        SignatureDomain::ClusterPolicy.verify(&signer, &policy, &signature)?;
        Ok(Self {
            bytes: bytes.to_vec(),
            signer,
            policy: decode::<PolicyMessage>(&policy)?.try_into()?,
        })
    }

    /// As it was signed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Who signed it.
    #[must_use]
    pub fn signer(&self) -> &OperatorPublicKey {
        &self.signer
    }

    /// Of a policy that was believed when it was stored.
    pub(crate) fn serial(&self) -> u64 {
        self.policy.serial
    }

    /// Of a policy that was believed when it was stored.
    pub(crate) fn cluster(&self) -> ClusterId {
        self.policy.cluster
    }

    /// Believes the policy if its signer is the operator whom the believer obeys.
    ///
    /// # Errors
    /// When it is another operator's.
    pub fn believe(
        self,
        is_operator: impl FnOnce(&OperatorPublicKey) -> bool,
    ) -> Result<BelievedPolicy, AnotherOperator> {
        if is_operator(&self.signer) {
            Ok(BelievedPolicy(self))
        } else {
            Err(AnotherOperator { signer: self.signer })
        }
    }
}

impl BelievedPolicy {
    /// Signs a policy: the protobuf message `{ 1: policy, 2: operator's public key, 3: Ed25519 signature }`, in which the policy is
    /// `{ 1: cluster id, 2: serial, 3: images, 4: releases, 5: least serial of a grant, 6: key service's public key }`, an image
    /// the document of its reference values, and a release `{ 1: version, 2: SHA-256 of the list of components }`.
    ///
    /// # Errors
    /// When no one could parse it.
    pub fn sign(policy: &ClusterPolicy, operator: &OperatorKey) -> Result<Self, ParsePolicyError> {
        let policy = PolicyMessage::from(policy).encode_to_vec();
        let signed = SignedMessage {
            signature: operator.sign(SignatureDomain::ClusterPolicy, &policy),
            policy,
            operator: operator.public().as_bytes().to_vec(),
        };
        Ok(Self(SignedPolicy::parse(&signed.encode_to_vec())?))
    }

    /// The policy that comes with what a node needs to become part of a cluster: signed by the operator whom the node obeys, for this
    /// cluster, and it lists these components.
    ///
    /// # Errors
    /// When it does not.
    pub fn for_new_member(
        bytes: &[u8],
        operator: &OperatorPublicKey,
        cluster: ClusterId,
        components: &ComponentList,
    ) -> Result<Self, RefusePolicyError> {
        let policy = SignedPolicy::parse(bytes)?.believe(|signer| signer == operator)?;
        policy.must_be_for(cluster)?;
        policy.must_list(components)?;
        Ok(policy)
    }

    /// As it was signed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Accepts nodes that run one of the images and have said this about themselves.
    ///
    /// # Errors
    /// When the reference values of an image are unusable.
    pub fn verifier(
        &self,
        variants: &dyn Variants,
        statements: &ExpectedStatements,
    ) -> Result<Box<dyn Verifier>, SetUpVerifierError> {
        let verifier = |image: &ReferenceValues| {
            let expectations = Expectations {
                image: image.clone(),
                statements: *statements,
            };
            variants.verifier(image.variant(), &expectations)
        };
        // Parsing has shown that there is one, and that all are of one variant.
        let verifiers = self.images.iter().map(verifier).collect::<Result<_, _>>()?;
        Ok(any_of(verifiers))
    }

    /// To be stored or served, where others decide whether they believe it.
    #[must_use]
    pub fn into_signed(self) -> SignedPolicy {
        self.0
    }

    /// Who signed it.
    #[must_use]
    pub fn operator(&self) -> &OperatorPublicKey {
        &self.0.signer
    }
}

impl Deref for BelievedPolicy {
    type Target = ClusterPolicy;

    fn deref(&self) -> &ClusterPolicy {
        &self.0.policy
    }
}

impl TryFrom<String> for SignedPolicy {
    type Error = ParsePolicyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&BASE64_STANDARD.decode(text).map_err(|_| ParsePolicyError::Base64)?)
    }
}

impl From<SignedPolicy> for String {
    fn from(policy: SignedPolicy) -> Self {
        BASE64_STANDARD.encode(policy.bytes)
    }
}

/// Only the one encoding is read, so that no one overlooks a field that a later version has.
fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, ParsePolicyError> {
    let message = M::decode(bytes).map_err(|_| ParsePolicyError::Malformed)?;
    if message.encode_to_vec() == bytes {
        Ok(message)
    } else {
        Err(ParsePolicyError::Malformed)
    }
}

impl From<&ClusterPolicy> for PolicyMessage {
    fn from(policy: &ClusterPolicy) -> Self {
        let ClusterPolicy {
            cluster,
            serial,
            images,
            releases,
            min_grant_serial,
            key_service,
        } = policy;
        let release = |Release { version, components }: &Release| ReleaseMessage {
            version: version.to_string(),
            components: components.as_bytes().to_vec(),
        };
        Self {
            cluster: cluster.as_bytes().to_vec(),
            serial: *serial,
            images: images.iter().map(|image| image.to_json().into_bytes()).collect(),
            releases: releases.iter().map(release).collect(),
            min_grant_serial: *min_grant_serial,
            key_service: key_service.as_bytes().to_vec(),
        }
    }
}

impl TryFrom<PolicyMessage> for ClusterPolicy {
    type Error = ParsePolicyError;

    fn try_from(message: PolicyMessage) -> Result<Self, Self::Error> {
        let PolicyMessage {
            cluster,
            serial,
            images,
            releases,
            min_grant_serial,
            key_service,
        } = message;
        if serial == 0 || min_grant_serial > serial {
            return Err(ParsePolicyError::Serial {
                serial,
                min_grant_serial,
            });
        }
        Ok(Self {
            cluster: ClusterId::try_from(cluster.as_slice())?,
            serial,
            images: parse_images(&images)?,
            releases: parse_releases(releases)?,
            min_grant_serial,
            key_service: KeyServicePublicKey::try_from(key_service.as_slice())?,
        })
    }
}

fn parse_images(documents: &[Vec<u8>]) -> Result<Vec<ReferenceValues>, ParsePolicyError> {
    check_number("images", documents.len())?;
    let images = documents.iter().map(|document| ReferenceValues::parse(document));
    let images: Vec<_> = images.collect::<Result<_, _>>()?;
    if images.iter().any(|image| image.variant() != images[0].variant()) {
        return Err(ParsePolicyError::SeveralVariants);
    }
    Ok(images)
}

fn parse_releases(messages: Vec<ReleaseMessage>) -> Result<Vec<Release>, ParsePolicyError> {
    check_number("releases", messages.len())?;
    let mut versions = BTreeSet::new();
    let parse = |ReleaseMessage { version, components }| {
        let components: [u8; 32] = components.try_into().map_err(|_| ParsePolicyError::Malformed)?;
        let release = Release {
            version: version.parse()?,
            components: Digest::new(components),
        };
        if versions.insert(release.version.clone()) {
            Ok(release)
        } else {
            Err(ParsePolicyError::VersionTwice)
        }
    };
    messages.into_iter().map(parse).collect()
}

fn check_number(what: &'static str, actual: usize) -> Result<(), ParsePolicyError> {
    if (1..=MAX_ENTRIES).contains(&actual) {
        Ok(())
    } else {
        Err(ParsePolicyError::Number { what, actual })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use cluster_types::Variant;

    use super::*;

    pub(crate) fn operator() -> OperatorKey {
        OperatorKey::from_seed(&[7; 32])
    }

    fn image(variant: Variant) -> ReferenceValues {
        ReferenceValues::new(variant, "node v0.1.0", &[1, 2])
    }

    fn release(version: &str) -> Release {
        Release {
            version: version.parse().unwrap(),
            components: Digest::new([3; 32]),
        }
    }

    pub(crate) fn policy() -> ClusterPolicy {
        ClusterPolicy {
            cluster: ClusterId::new([1; 32]),
            serial: 5,
            images: vec![image(Variant::ALL[0])],
            releases: vec![release("v1.35.4")],
            min_grant_serial: 4,
            key_service: KeyServicePublicKey::new([6; 32]),
        }
    }

    fn check(change: impl FnOnce(&mut ClusterPolicy)) -> Result<BelievedPolicy, ParsePolicyError> {
        let mut changed = policy();
        change(&mut changed);
        BelievedPolicy::sign(&changed, &operator())
    }

    #[test]
    fn what_the_operator_signed_is_believed() {
        let signed = check(|_| {}).unwrap();
        let parsed = SignedPolicy::parse(signed.as_bytes()).unwrap();
        let believed = parsed.believe(|signer| *signer == operator().public()).unwrap();
        assert_eq!(*believed, policy());
        assert_eq!(believed, signed);
    }

    #[test]
    fn another_operators_policy_is_not_believed() {
        let other = OperatorKey::from_seed(&[8; 32]);
        let signed = BelievedPolicy::sign(&policy(), &other).unwrap();
        let parsed = SignedPolicy::parse(signed.as_bytes()).unwrap();
        let refused = parsed.believe(|signer| *signer == operator().public());
        assert_eq!(refused, Err(AnotherOperator { signer: other.public() }));
    }

    #[test]
    fn a_node_becomes_a_member_only_with_its_operators_policy_for_its_cluster_and_components() {
        let list = |version: &str| ComponentList::new(version.parse().unwrap(), Vec::new()).unwrap();
        let signed = check(|policy| policy.releases = vec![Release::of(&list("v1.35.4"))]).unwrap();
        let (operator, cluster) = (operator().public(), policy().cluster);
        let refused = |operator: &OperatorPublicKey, cluster, components| {
            BelievedPolicy::for_new_member(signed.as_bytes(), operator, cluster, &components).unwrap_err()
        };
        let other = OperatorPublicKey::new([8; 32]);
        let error = refused(&other, cluster, list("v1.35.4"));
        assert!(matches!(error, RefusePolicyError::Operator(_)));
        let error = refused(&operator, ClusterId::new([8; 32]), list("v1.35.4"));
        assert!(matches!(error, RefusePolicyError::Cluster(_)));
        let error = refused(&operator, cluster, list("v1.35.5"));
        assert!(matches!(error, RefusePolicyError::Release(_)));
        let good = BelievedPolicy::for_new_member(signed.as_bytes(), &operator, cluster, &list("v1.35.4"));
        assert_eq!(good.unwrap(), signed);
    }

    /// Each bit counts: of the policy, of the signer's key and of the signature.
    #[test]
    fn a_policy_that_was_changed_after_it_was_signed_is_refused() {
        let signed = check(|_| {}).unwrap().as_bytes().to_vec();
        for bit in 0..signed.len() * 8 {
            let mut changed = signed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(SignedPolicy::parse(&changed).is_err(), "bit {bit}");
        }
        let mut message = SignedMessage::decode(signed.as_slice()).unwrap();
        message.operator = OperatorKey::from_seed(&[8; 32]).public().as_bytes().to_vec();
        let refused = SignedPolicy::parse(&message.encode_to_vec());
        assert!(matches!(refused, Err(ParsePolicyError::Signature(_))));
    }

    #[test]
    fn a_signature_of_another_kind_is_refused() {
        let mut message = SignedMessage::decode(check(|_| {}).unwrap().as_bytes()).unwrap();
        message.signature = operator().sign(SignatureDomain::RoleGrant, &message.policy);
        let refused = SignedPolicy::parse(&message.encode_to_vec());
        assert!(matches!(refused, Err(ParsePolicyError::Signature(_))));
    }

    /// A later version's field could be a condition.
    #[test]
    fn a_field_that_this_version_does_not_know_is_refused() {
        let field_7 = [0x38, 1];
        let policy = [PolicyMessage::from(&policy()).encode_to_vec(), field_7.to_vec()].concat();
        let mut message = SignedMessage {
            signature: operator().sign(SignatureDomain::ClusterPolicy, &policy),
            policy,
            operator: operator().public().as_bytes().to_vec(),
        };
        let refused = SignedPolicy::parse(&message.encode_to_vec());
        assert!(matches!(refused, Err(ParsePolicyError::Malformed)));
        message = SignedMessage::decode(check(|_| {}).unwrap().as_bytes()).unwrap();
        let refused = SignedPolicy::parse(&[message.encode_to_vec(), field_7.to_vec()].concat());
        assert!(matches!(refused, Err(ParsePolicyError::Malformed)));
    }

    #[test]
    fn each_part_must_make_sense() {
        type Change = fn(&mut ClusterPolicy);
        let cases: [(Change, &str); 9] = [
            (|policy| policy.images.clear(), "has 0 images, expected 1 to 8"),
            (
                |policy| policy.images = vec![image(Variant::ALL[0]); 9],
                "has 9 images, expected 1 to 8",
            ),
            (
                |policy| policy.images.push(image(Variant::ALL[1])),
                "images of several attestation variants",
            ),
            (
                |policy| policy.images[0] = ReferenceValues::new(Variant::ALL[0], "x".repeat(65536), &[1]),
                "unusable reference values",
            ),
            (|policy| policy.releases.clear(), "has 0 releases, expected 1 to 8"),
            (
                |policy| policy.releases.push(release("v1.35.4")),
                "one Kubernetes version twice",
            ),
            (
                |policy| (policy.serial, policy.min_grant_serial) = (0, 0),
                "has serial 0 and accepts grants from serial 0",
            ),
            (
                |policy| policy.min_grant_serial = 6,
                "has serial 5 and accepts grants from serial 6",
            ),
            (
                |policy| policy.images = vec![ReferenceValues::new(Variant::ALL[0], "x".repeat(60000), &[1]); 5],
                "bytes, at most 262144 are accepted",
            ),
        ];
        for (change, expected) in cases {
            let error = check(change).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(check(|policy| policy.min_grant_serial = 5).is_ok());
    }

    /// The encoding is fixed: policies outlive programs.
    #[test]
    fn encoding_matches_the_documentation() {
        let document = policy().images[0].to_json();
        let length = u8::try_from(document.len()).unwrap();
        let release = [&[0x0a, 7][..], b"v1.35.4", &[0x12, 32], &[3; 32]].concat();
        let policy = [
            &[0x0a, 32][..],
            &[1; 32],
            &[0x10, 5],
            &[0x1a, length],
            document.as_bytes(),
            &[0x22, u8::try_from(release.len()).unwrap()],
            &release,
            &[0x28, 4],
            &[0x32, 32],
            &[6; 32],
        ]
        .concat();
        let operator = operator();
        let signature = operator.sign(SignatureDomain::ClusterPolicy, &policy);
        let signed = [
            &[
                0x0a,
                u8::try_from(policy.len() & 0x7f | 0x80).unwrap(),
                u8::try_from(policy.len() >> 7).unwrap(),
            ][..],
            &policy,
            &[0x12, 32],
            operator.public().as_bytes(),
            &[0x1a, 64],
            &signature,
        ]
        .concat();
        assert_eq!(check(|_| {}).unwrap().as_bytes(), signed);
    }

    #[test]
    fn garbage_is_refused() {
        for garbage in [&[][..], &[0xff; 9], &[0; MAX_LEN + 1]] {
            assert!(SignedPolicy::parse(garbage).is_err());
        }
    }
}
