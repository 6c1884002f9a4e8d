use std::fmt;

use cluster_types::ClusterId;
use digest::Digest;

use crate::{Claim, ClaimValue, Comparison, Severity};

/// What a node says about itself by measuring it, before it runs anything unmeasured.
///
/// Everything that a node measures about itself belongs here, so that every technology has to express it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The cluster it is part of.
    pub cluster: ClusterId,
}

/// What a node must have said about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedMembership {
    /// Nothing: it belongs to no cluster yet.
    New,
    /// It is a member of some cluster; the caller compares which one as soon as it can know.
    Any,
    /// Exactly this membership was measured.
    Of(Membership),
}

/// What a node has said about itself, as its technology shows it: a digest that tells one membership from another and from
/// none.
#[derive(Clone, Copy)]
pub struct MeasuredMembership {
    name: &'static str,
    shown: Digest,
    new: Digest,
    of: fn(&Membership) -> Digest,
}

impl MeasuredMembership {
    /// Made by the technology: where it measures, what it shows there, what a new node shows, and what a member shows. A
    /// technology whose registers are longer gives their digests.
    #[must_use]
    pub const fn new(name: &'static str, shown: Digest, new: Digest, of: fn(&Membership) -> Digest) -> Self {
        Self { name, shown, new, of }
    }

    /// Whether the node belongs to no cluster yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.shown == self.new
    }

    /// Whether the node has measured exactly this.
    #[must_use]
    pub fn is(&self, membership: &Membership) -> bool {
        self.shown == self.shown_by(membership)
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
    pub(crate) fn claim(&self, expected: &ExpectedMembership) -> Claim {
        let severity = Severity::Contraindicates;
        let comparison = if self.meets(expected) {
            Comparison::AsExpected { severity }
        } else {
            Comparison::Differs {
                expected: match expected {
                    ExpectedMembership::New => self.new.into(),
                    ExpectedMembership::Any => ClaimValue::from("the id of a cluster, measured"),
                    ExpectedMembership::Of(membership) => self.shown_by(membership).into(),
                },
                severity,
            }
        };
        Claim {
            name: self.name.to_owned(),
            actual: self.shown.into(),
            comparison,
        }
    }

    /// The digest that a node with this membership shows.
    #[must_use]
    pub fn shown_by(&self, membership: &Membership) -> Digest {
        (self.of)(membership)
    }

    /// The digest that this node shows.
    #[must_use]
    pub fn shown(&self) -> Digest {
        self.shown
    }
}

impl From<ClusterId> for Membership {
    fn from(cluster: ClusterId) -> Self {
        Self { cluster }
    }
}

impl fmt::Debug for MeasuredMembership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeasuredMembership({})", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Digest = Digest::new([0; 32]);

    fn of(membership: &Membership) -> Digest {
        Digest::of(membership.cluster.as_bytes())
    }

    fn check(shown: Digest) -> [bool; 4] {
        let measured = MeasuredMembership::new("register", shown, NEW, of);
        let cluster = |byte| ExpectedMembership::Of(ClusterId::new([byte; 32]).into());
        let expected = [ExpectedMembership::New, ExpectedMembership::Any, cluster(1), cluster(2)];
        expected.map(|expected| measured.meets(&expected))
    }

    #[test]
    fn a_node_is_new_or_a_member_of_one_cluster() {
        assert_eq!(check(NEW), [true, false, false, false]);
        let member = of(&ClusterId::new([1; 32]).into());
        assert_eq!(check(member), [false, true, true, false]);
        let foreign = of(&ClusterId::new([3; 32]).into());
        assert_eq!(check(foreign), [false, true, false, false]);
    }
}
