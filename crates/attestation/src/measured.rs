use std::fmt;

use digest::Digest;

use crate::{Claim, ClaimValue, Comparison, Severity};

/// One thing that a node has said about itself, as its technology shows it: a digest that tells one statement from another and
/// from none.
#[derive(Clone, Copy)]
pub struct Measured<T> {
    name: &'static str,
    shown: Digest,
    nothing: Digest,
    of: fn(&T) -> Digest,
}

impl<T> Measured<T> {
    /// Made by the technology: where it measures, what it shows there, what it shows if nothing was measured, and what a statement
    /// makes it show. A technology whose registers are longer gives their digests.
    #[must_use]
    pub const fn new(name: &'static str, shown: Digest, nothing: Digest, of: fn(&T) -> Digest) -> Self {
        Self {
            name,
            shown,
            nothing,
            of,
        }
    }

    /// Whether the node has measured nothing there.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.shown == self.nothing
    }

    /// Whether the node has measured exactly this.
    #[must_use]
    pub fn is(&self, statement: &T) -> bool {
        self.shown == self.shown_by(statement)
    }

    /// The digest that a node shows that has measured exactly this.
    #[must_use]
    pub fn shown_by(&self, statement: &T) -> Digest {
        (self.of)(statement)
    }

    /// The digest that this node shows.
    #[must_use]
    pub fn shown(&self) -> Digest {
        self.shown
    }

    /// The digest that a node shows that has measured nothing there.
    pub(crate) fn shown_by_nothing(&self) -> Digest {
        self.nothing
    }

    /// A claim that contraindicates a node that does not meet it.
    pub(crate) fn claim(&self, is_met: bool, expected: impl FnOnce() -> ClaimValue) -> Claim {
        let severity = Severity::Contraindicates;
        Claim {
            name: self.name.to_owned(),
            actual: self.shown.into(),
            comparison: if is_met {
                Comparison::AsExpected { severity }
            } else {
                Comparison::Differs {
                    expected: expected(),
                    severity,
                }
            },
        }
    }
}

impl<T> fmt::Debug for Measured<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Measured({} is {})", self.name, self.shown)
    }
}
