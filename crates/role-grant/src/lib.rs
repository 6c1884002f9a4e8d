//! The operator's signature that lets one attested machine have one role.
//!
//! A node's role is not decided by what the node or the cloud says. A worker needs only an affirming attestation. A control
//! plane also needs a [`RoleGrant`], which names the machine by its attested identity, so that a stolen grant is of no use to
//! another machine.

use attestation::{AttestedIdentity, UnixTime};
use cluster_types::{ClusterId, NodeRole, OperatorPublicKey};
use operator_key::{OperatorKey, SignatureDomain};
use prost::Message;

/// Longer grants are refused, in bytes. A real one has about 150.
const MAX_LEN: usize = 1024;

/// What a grant says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleGrant {
    /// The cluster to join.
    pub cluster: ClusterId,
    /// The machine that may have the role.
    pub machine: AttestedIdentity,
    /// The role that the machine may take.
    pub role: NodeRole,
    /// Seconds since the Unix epoch after which the grant is void.
    pub not_after: u64,
    /// Serial of the cluster policy that was in force when it was signed. A later policy can make older grants void.
    pub serial: u64,
}

/// The role that a machine requests, and in which cluster.
#[derive(Clone, Copy, Debug)]
pub struct RequestedRole {
    /// The cluster in which the grant was presented.
    pub cluster: ClusterId,
    /// The machine that presented it.
    pub machine: AttestedIdentity,
    /// The role it wants.
    pub role: NodeRole,
}

/// A grant that does not allow what was requested.
#[derive(Debug, thiserror::Error)]
pub enum RoleGrantError {
    /// There is no grant.
    #[error("a {0} needs a role grant signed by the operator")]
    Missing(NodeRole),
    /// The bytes are not a grant.
    #[error("the role grant is malformed")]
    Malformed,
    /// It is not signed by the operator of this cluster.
    #[error("the role grant is not signed by the operator")]
    Signature,
    /// It is for another cluster.
    #[error("the role grant is for cluster {granted}, but this is cluster {actual}")]
    Cluster {
        /// What the grant says.
        granted: ClusterId,
        /// The cluster in which it was presented.
        actual: ClusterId,
    },
    /// It is for another machine.
    #[error("the role grant is for machine {granted}, but machine {actual} attested")]
    Machine {
        /// What the grant says.
        granted: AttestedIdentity,
        /// The machine that presented it.
        actual: AttestedIdentity,
    },
    /// It is for another role.
    #[error("the role grant is for a {granted}, but a {wanted} was requested")]
    Role {
        /// What the grant says.
        granted: NodeRole,
        /// The role that was requested.
        wanted: NodeRole,
    },
    /// A later policy has made it void.
    #[error("the role grant has serial {actual}, but the cluster policy accepts none below {least}")]
    Void {
        /// What the grant says.
        actual: u64,
        /// What the policy says.
        least: u64,
    },
    /// It has expired.
    #[error("the role grant expired at {0} seconds after the Unix epoch")]
    Expired(u64),
}

#[derive(Clone, PartialEq, Message)]
struct GrantMessage {
    #[prost(bytes = "vec", tag = "1")]
    cluster: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    machine: Vec<u8>,
    #[prost(string, tag = "3")]
    role: String,
    #[prost(uint64, tag = "4")]
    not_after: u64,
    #[prost(bytes = "vec", tag = "5")]
    signature: Vec<u8>,
    #[prost(uint64, tag = "6")]
    serial: u64,
}

impl RoleGrant {
    /// Signs the grant: the protobuf message
    /// `{ 1: cluster id, 2: attested identity, 3: role, 4: not after, 5: Ed25519 signature, 6: serial }`.
    #[must_use]
    pub fn sign(&self, operator: &OperatorKey) -> Vec<u8> {
        GrantMessage {
            cluster: self.cluster.as_bytes().to_vec(),
            machine: self.machine.as_bytes().to_vec(),
            role: self.role.to_string(),
            not_after: self.not_after,
            signature: operator.sign(SignatureDomain::RoleGrant, &self.signed_bytes()),
            serial: self.serial,
        }
        .encode_to_vec()
    }

    /// Checks that a grant was signed by the operator, allows exactly this, and has at least the serial that the cluster policy asks for.
    ///
    /// # Errors
    /// When there is no grant, or the operator did not sign it, or it is for something else.
    pub fn check(
        grant: &[u8],
        operator: &OperatorPublicKey,
        requested: &RequestedRole,
        min_serial: u64,
        now: UnixTime,
    ) -> Result<(), RoleGrantError> {
        let RequestedRole { cluster, machine, role } = *requested;
        if grant.is_empty() {
            return Err(RoleGrantError::Missing(role));
        }
        let grant = Self::verify(grant, operator)?;
        if grant.cluster != cluster {
            return Err(RoleGrantError::Cluster {
                granted: grant.cluster,
                actual: cluster,
            });
        }
        if grant.machine != machine {
            return Err(RoleGrantError::Machine {
                granted: grant.machine,
                actual: machine,
            });
        }
        if grant.role != role {
            return Err(RoleGrantError::Role {
                granted: grant.role,
                wanted: role,
            });
        }
        if grant.serial < min_serial {
            return Err(RoleGrantError::Void {
                actual: grant.serial,
                least: min_serial,
            });
        }
        if now.as_seconds() > grant.not_after {
            return Err(RoleGrantError::Expired(grant.not_after));
        }
        Ok(())
    }

    fn verify(bytes: &[u8], operator: &OperatorPublicKey) -> Result<Self, RoleGrantError> {
        if bytes.len() > MAX_LEN {
            return Err(RoleGrantError::Malformed);
        }
        let message = GrantMessage::decode(bytes).map_err(|_| RoleGrantError::Malformed)?;
        let (grant, signature) = parse(message).ok_or(RoleGrantError::Malformed)?;
        SignatureDomain::RoleGrant
            .verify(operator, &grant.signed_bytes(), &signature)
            .map_err(|_| RoleGrantError::Signature)?;
        Ok(grant)
    }

    /// Every part has a fixed length, except the role, which comes last.
    fn signed_bytes(&self) -> Vec<u8> {
        let role = self.role.to_string();
        [
            &self.cluster.as_bytes()[..],
            self.machine.as_bytes(),
            &self.not_after.to_be_bytes(),
            &self.serial.to_be_bytes(),
            role.as_bytes(),
        ]
        .concat()
    }
}

/// The grant and its signature, which is still to be verified.
fn parse(message: GrantMessage) -> Option<(RoleGrant, Vec<u8>)> {
    let GrantMessage {
        cluster,
        machine,
        role,
        not_after,
        signature,
        serial,
    } = message;
    let machine: [u8; 32] = machine.as_slice().try_into().ok()?;
    let grant = RoleGrant {
        cluster: cluster.as_slice().try_into().ok()?,
        machine: AttestedIdentity::new(digest::Digest::new(machine)),
        role: role.parse().ok()?,
        not_after,
        serial,
    };
    Some((grant, signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(byte: u8) -> AttestedIdentity {
        AttestedIdentity::new(digest::Digest::new([byte; 32]))
    }

    fn grant() -> RoleGrant {
        RoleGrant {
            cluster: ClusterId::new([1; 32]),
            machine: machine(2),
            role: NodeRole::ControlPlane,
            not_after: 1000,
            serial: 5,
        }
    }

    fn operator() -> OperatorKey {
        OperatorKey::from_seed(&[7; 32])
    }

    fn check(change: impl FnOnce(&mut RoleGrant)) -> Result<(), RoleGrantError> {
        let mut changed = grant();
        change(&mut changed);
        present(&changed.sign(&operator()))
    }

    fn present(bytes: &[u8]) -> Result<(), RoleGrantError> {
        let good = grant();
        let operator = operator().public();
        let requested = RequestedRole {
            cluster: good.cluster,
            machine: good.machine,
            role: good.role,
        };
        RoleGrant::check(bytes, &operator, &requested, 5, UnixTime::from_seconds(1000))
    }

    #[test]
    fn the_operators_grant_is_good_for_its_machine() {
        assert!(check(|_| {}).is_ok());
    }

    #[test]
    fn no_grant_is_refused() {
        assert!(matches!(
            present(&[]),
            Err(RoleGrantError::Missing(NodeRole::ControlPlane))
        ));
    }

    #[test]
    fn another_signer_is_refused() {
        let other = grant().sign(&OperatorKey::from_seed(&[8; 32]));
        assert!(matches!(present(&other), Err(RoleGrantError::Signature)));
    }

    #[test]
    fn a_grant_for_another_cluster_is_refused() {
        let result = check(|grant| grant.cluster = ClusterId::new([9; 32]));
        assert!(matches!(result, Err(RoleGrantError::Cluster { .. })));
    }

    #[test]
    fn a_grant_for_another_machine_is_refused() {
        assert!(matches!(
            check(|grant| grant.machine = machine(9)),
            Err(RoleGrantError::Machine { .. })
        ));
    }

    #[test]
    fn a_grant_for_another_role_is_refused() {
        assert!(matches!(
            check(|grant| grant.role = NodeRole::Worker),
            Err(RoleGrantError::Role { .. })
        ));
    }

    #[test]
    fn an_expired_grant_is_refused() {
        assert!(matches!(
            check(|grant| grant.not_after = 999),
            Err(RoleGrantError::Expired(999))
        ));
    }

    #[test]
    fn a_grant_that_a_later_policy_made_void_is_refused() {
        let result = check(|grant| grant.serial = 4);
        assert!(matches!(result, Err(RoleGrantError::Void { actual: 4, least: 5 })));
        assert!(check(|grant| grant.serial = 6).is_ok());
    }

    #[test]
    fn a_changed_grant_is_refused() {
        let changes: [fn(&mut GrantMessage); 2] = [|grant| grant.not_after += 1, |grant| grant.serial += 1];
        for change in changes {
            let mut message = GrantMessage::decode(grant().sign(&operator()).as_slice()).unwrap();
            change(&mut message);
            let refused = present(&message.encode_to_vec());
            assert!(matches!(refused, Err(RoleGrantError::Signature)));
        }
    }

    #[test]
    fn garbage_is_refused() {
        for garbage in [&[0xff; 9][..], &[0; MAX_LEN + 1]] {
            assert!(matches!(present(garbage), Err(RoleGrantError::Malformed)));
        }
    }
}
