//! Join tickets, as a service that belongs to some cluster could make them.
//!
//! The service's membership is made to fit the ticket, without which every input ends at that check.

#![no_main]

#[allow(dead_code, reason = "a module of a program, which is not a library")]
#[path = "../../apps/bootstrapper/src/request.rs"]
mod request;
#[allow(dead_code, reason = "a module of a program, which is not a library")]
#[path = "../../apps/bootstrapper/src/join/ticket.rs"]
mod ticket;

use attestation::{Measured, Membership};
use cluster_types::{MeasurementSalt, NodeRole};
use digest::Digest;
use grpc_api::join::IssueJoinTicketResponse;
use key_derivation::cluster_id;
use libfuzzer_sys::fuzz_target;
use operator_key::OperatorKey;
use prost::Message;
use secret::MeasurementSecret;
use ticket::Ticket;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut message) = IssueJoinTicketResponse::decode(bytes) else {
        return;
    };
    let (secret, salt) = ([1; 32], [2; 32]);
    message.measurement_secret = secret.to_vec();
    message.measurement_salt = salt.to_vec();
    let cluster = cluster_id(&MeasurementSecret::from_bytes(secret), &MeasurementSalt::new(salt));
    let shown =
        |membership: &Membership| Digest::of(&[membership.cluster.as_bytes(), membership.role.event()].concat());
    let member = Membership::new(cluster, NodeRole::ControlPlane);
    let service = Measured::new("register", shown(&member), Digest::new([0; 32]), shown);
    let operator = OperatorKey::from_seed(&[3; 32]).public();
    for role in [NodeRole::ControlPlane, NodeRole::Worker] {
        let _ = Ticket::parse(message.clone(), &service, &operator, role);
    }
});
