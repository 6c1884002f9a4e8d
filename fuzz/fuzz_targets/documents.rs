//! Documents that operators, mirrors and nodes hand each other.

#![no_main]

use attestation::{AttestedIdentity, UnixTime};
use cluster_policy::SignedPolicy;
use cluster_types::{ClusterId, NodeRole};
use digest::Digest;
use key_derivation::MasterSecret;
use kubernetes_components::ComponentList;
use libfuzzer_sys::fuzz_target;
use measurements::{PcrReferences, ReferenceValues};
use operator_key::OperatorKey;
use role_grant::{RequestedRole, RoleGrant};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(values) = ReferenceValues::parse(bytes) {
        let _ = values.values::<PcrReferences>();
    }
    let _ = MasterSecret::parse(bytes);
    if let Ok(list) = ComponentList::from_mirror_document(bytes) {
        assert_eq!(
            ComponentList::from_mirror_document(&list.to_mirror_document()).ok(),
            Some(list)
        );
    }
    let operator = OperatorKey::from_seed(&[1; 32]).public();
    let requested = RequestedRole {
        cluster: ClusterId::new([3; 32]),
        machine: AttestedIdentity::new(Digest::new([2; 32])),
        role: NodeRole::ControlPlane,
    };
    assert!(RoleGrant::check(bytes, &operator, &requested, 0, UnixTime::from_seconds(0)).is_err());
    if let Ok(policy) = SignedPolicy::parse(bytes) {
        assert!(policy.believe(|signer| *signer == operator).is_err());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = ComponentList::from_config_map(text, text, "v1.35.4");
    }
});
