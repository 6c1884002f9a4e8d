//! Join tickets, as a service that belongs to some cluster could make them.
//!
//! The service's membership, the policy and the secrets are made to fit, without which every input ends at those checks.

#![no_main]

#[allow(dead_code, reason = "a module of a program, which is not a library")]
#[path = "../../apps/bootstrapper/src/request.rs"]
mod request;
#[allow(dead_code, reason = "a module of a program, which is not a library")]
#[path = "../../apps/bootstrapper/src/join/ticket.rs"]
mod ticket;

use std::sync::LazyLock;

use attestation::{Measured, Membership, Nonce, ReportBinding};
use cluster_policy::{BelievedPolicy, ClusterPolicy, Release};
use cluster_types::{ClusterId, MeasurementSalt, NodeRole, Variant};
use digest::Digest;
use grpc_api::join::IssueJoinTicketResponse;
use key_derivation::{MasterSecret, cluster_id};
use kubernetes_components::ComponentList;
use libfuzzer_sys::fuzz_target;
use measurements::ReferenceValues;
use node_secrets::{ControlPlaneSecrets, KeyServiceKey, NodeSecrets, SHARED_FILES, SealingKey, SharedFile, seal};
use operator_key::OperatorKey;
use prost::Message;
use secret::StateDiskKey;
use ticket::{OwnSession, Ticket};
use zeroize::Zeroizing;

const SALT: MeasurementSalt = MeasurementSalt::new([2; 32]);

/// What does not depend on the input.
struct Fixed {
    cluster: ClusterId,
    policy: Vec<u8>,
    sealing_key: SealingKey,
    binding: ReportBinding,
    of_worker: Vec<u8>,
    of_control_plane: Vec<u8>,
}

static FIXED: LazyLock<Fixed> = LazyLock::new(|| {
    let secret = master_secret();
    let key_service = KeyServiceKey::of(&secret);
    let measurement_secret = secret.kek().measurement_secret();
    let cluster = cluster_id(&measurement_secret, &SALT);
    let components = ComponentList::new("v1.35.4".parse().expect("a version"), Vec::new()).expect("a list");
    let policy = ClusterPolicy {
        cluster,
        serial: 1,
        images: vec![ReferenceValues::new(Variant::ALL[0], "image", &[4])],
        releases: vec![Release::of(&components)],
        min_grant_serial: 0,
        key_service: key_service.public(),
    };
    let policy = BelievedPolicy::sign(&policy, &OperatorKey::of(&secret)).expect("a policy");
    let (sealing_key, binding) = (SealingKey::generate(), ReportBinding::standalone(&Nonce::new([1; 32])));
    let seal_with = |control_plane| {
        let secrets = NodeSecrets {
            disk: "3f2504e0-4f89-11d3-9a0c-0305e82c3301".parse().expect("a UUID"),
            state_disk_key: StateDiskKey::from_bytes([1; 32]),
            measurement_secret: master_secret().kek().measurement_secret(),
            policy: Digest::of(policy.as_bytes()),
            cluster_ca: b"certificate".to_vec().into(),
            control_plane,
        };
        seal(&secrets, &sealing_key.public(), &binding, &key_service).expect("a key")
    };
    let files = SHARED_FILES.map(|name| SharedFile {
        name,
        content: Zeroizing::new(Vec::new()),
    });
    Fixed {
        cluster,
        policy: policy.as_bytes().to_vec(),
        of_worker: seal_with(None),
        of_control_plane: seal_with(Some(ControlPlaneSecrets {
            master_secret: master_secret(),
            files: files.into(),
        })),
        sealing_key,
        binding,
    }
});

fn master_secret() -> MasterSecret {
    MasterSecret::new(Zeroizing::new(vec![7; 32]), vec![8; 32]).expect("a master secret")
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut message) = IssueJoinTicketResponse::decode(bytes) else {
        return;
    };
    message.measurement_salt = SALT.as_bytes().to_vec();
    message.cluster_policy.clone_from(&FIXED.policy);
    let shown =
        |membership: &Membership| Digest::of(&[membership.cluster.as_bytes(), membership.role.event()].concat());
    let member = Membership::new(FIXED.cluster, NodeRole::ControlPlane);
    let service = Measured::new("register", shown(&member), Digest::new([0; 32]), shown);
    let session = OwnSession {
        sealing_key: &FIXED.sealing_key,
        binding: &FIXED.binding,
    };
    let operator = OperatorKey::of(&master_secret()).public();
    for (role, sealed) in [
        (NodeRole::ControlPlane, &FIXED.of_control_plane),
        (NodeRole::Worker, &FIXED.of_worker),
    ] {
        message.sealed_secrets.clone_from(sealed);
        let _ = Ticket::parse(message.clone(), &session, &service, &operator, role);
    }
});
