use cluster_types::{ClusterId, NodeRole};

use crate::{Claim, ClaimValue, Measured};

/// What a node is part of. It measures that before it runs anything unmeasured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The cluster it is part of.
    pub cluster: ClusterId,
    /// What it is there. No node changes its role.
    pub role: NodeRole,
}

/// What a node must have said about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedMembership {
    /// Nothing: it belongs to no cluster yet.
    New,
    /// It is a member of some cluster, in some role; the caller compares which as soon as it can know.
    Any,
    /// Exactly this membership was measured.
    Of(Membership),
}

impl Measured<Membership> {
    /// Whether the node belongs to no cluster yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_nothing()
    }

    /// Whether the node has measured what it must.
    #[must_use]
    pub fn meets(&self, expected: &ExpectedMembership) -> bool {
        match expected {
            ExpectedMembership::New => self.is_new(),
            ExpectedMembership::Any => !self.is_new(),
            ExpectedMembership::Of(membership) => self.is(membership),
        }
    }

    /// Compares it with what is expected.
    pub(crate) fn membership_claim(&self, expected: &ExpectedMembership) -> Claim {
        self.claim(self.meets(expected), || match expected {
            ExpectedMembership::New => self.shown_by_nothing().into(),
            ExpectedMembership::Any => ClaimValue::from("the id of a cluster and a role, measured"),
            ExpectedMembership::Of(membership) => self.shown_by(membership).into(),
        })
    }
}

impl Membership {
    /// This role in this cluster.
    #[must_use]
    pub const fn new(cluster: ClusterId, role: NodeRole) -> Self {
        Self { cluster, role }
    }
}

#[cfg(test)]
mod tests {
    use digest::Digest;

    use super::*;

    const NEW: Digest = Digest::new([0; 32]);

    fn of(membership: &Membership) -> Digest {
        let Membership { cluster, role } = membership;
        Digest::of(&[cluster.as_bytes(), role.event()].concat())
    }

    fn member(cluster: u8, role: NodeRole) -> Membership {
        Membership::new(ClusterId::new([cluster; 32]), role)
    }

    fn check(shown: Digest) -> [bool; 5] {
        let measured = Measured::new("register", shown, NEW, of);
        let of = |cluster, role| ExpectedMembership::Of(member(cluster, role));
        let expected = [
            ExpectedMembership::New,
            ExpectedMembership::Any,
            of(1, NodeRole::Worker),
            of(1, NodeRole::ControlPlane),
            of(2, NodeRole::Worker),
        ];
        expected.map(|expected| measured.meets(&expected))
    }

    #[test]
    fn a_node_is_new_or_has_one_role_in_one_cluster() {
        assert_eq!(check(NEW), [true, false, false, false, false]);
        let worker = of(&member(1, NodeRole::Worker));
        assert_eq!(check(worker), [false, true, true, false, false]);
        let control_plane = of(&member(1, NodeRole::ControlPlane));
        assert_eq!(check(control_plane), [false, true, false, true, false]);
        let foreign = of(&member(3, NodeRole::Worker));
        assert_eq!(check(foreign), [false, true, false, false, false]);
    }
}
