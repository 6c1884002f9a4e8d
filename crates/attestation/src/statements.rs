use cluster_types::OperatorPublicKey;
use digest::Digest;

use crate::{Claim, ExpectedMembership, Measured, Membership};

/// Everything that a node says about itself by measuring it, so that every technology has to express it.
#[derive(Clone, Copy, Debug)]
pub struct MeasuredStatements {
    /// The operator whom it obeys. It says so before its first attested session.
    pub operator: Measured<OperatorPublicKey>,
    /// What it is part of.
    pub membership: Measured<Membership>,
}

/// What a node must have said about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedStatements {
    /// The operator whom it obeys: nobody else's node is given anything.
    pub operator: OperatorPublicKey,
    /// What it is part of.
    pub membership: ExpectedMembership,
}

/// What a node shows for each of its statements, so that it can be sent to a program without the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownStatements {
    /// For the operator whom it obeys.
    pub operator: Digest,
    /// For what it is part of.
    pub membership: Digest,
}

impl MeasuredStatements {
    /// What the node shows.
    #[must_use]
    pub fn shown(&self) -> ShownStatements {
        ShownStatements {
            operator: self.operator.shown(),
            membership: self.membership.shown(),
        }
    }

    /// Compares each with what is expected.
    pub(crate) fn claims(&self, expected: &ExpectedStatements) -> [Claim; 2] {
        let ExpectedStatements { operator, membership } = expected;
        let operator = self
            .operator
            .claim(self.operator.is(operator), || self.operator.shown_by(operator).into());
        [operator, self.membership.membership_claim(membership)]
    }
}
