use attestation::{Claim, ClaimValue, Comparison, Expectations, MeasuredMembership, Membership, Severity};
use digest::Digest;
use document::DocumentError;
use measurements::{Enforcement, PcrIndex, PcrReferences, PcrValue, PcrValues, ReferenceValue};

/// Which nodes are acceptable: those that booted this image and have said this about themselves.
#[derive(Clone, Debug)]
pub struct PcrPolicy {
    image: PcrReferences,
    membership: attestation::ExpectedMembership,
}

impl PcrPolicy {
    /// What is expected, in registers.
    ///
    /// # Errors
    /// When the reference values are not those of a TPM, or would accept every node.
    pub fn new(expectations: &Expectations) -> Result<Self, DocumentError> {
        Ok(Self {
            image: expectations.image.values()?,
            membership: expectations.membership,
        })
    }

    /// Every register that is compared with a reference value; a quote must cover them all.
    pub(crate) fn required(&self) -> impl Iterator<Item = PcrIndex> + '_ {
        self.image.pcrs().keys().copied()
    }

    /// Says of each register how it compares with what is expected.
    pub(crate) fn claims(&self, pcrs: &PcrValues) -> Vec<Claim> {
        let claim = |(index, value): (&PcrIndex, &PcrValue)| Claim {
            name: format!("PCR {index}"),
            actual: value.digest().into(),
            comparison: self.compare(*index, *value),
        };
        pcrs.iter().map(claim).collect()
    }

    /// PCR 15 is left to the membership, whatever the image's values say.
    fn compare(&self, index: PcrIndex, actual: PcrValue) -> Comparison {
        if index == PcrIndex::CLUSTER_ID {
            return self.compare_membership(actual);
        }
        match self.image.pcrs().get(&index) {
            None => Comparison::NotCompared,
            Some(ReferenceValue { expected, enforcement }) => {
                let severity = match enforcement {
                    Enforcement::Required => Severity::Contraindicates,
                    Enforcement::Warn => Severity::Warns,
                };
                Comparison::exact(&actual.digest().into(), expected.digest().into(), severity)
            }
        }
    }

    fn compare_membership(&self, actual: PcrValue) -> Comparison {
        use attestation::ExpectedMembership::{Any, New, Of};
        let measured = measured_membership(actual);
        if measured.meets(&self.membership) {
            return Comparison::AsExpected;
        }
        let expected = match &self.membership {
            New => ClaimValue::Digest(PcrValue::ZERO.digest()),
            Any => ClaimValue::from("the id of a cluster, measured"),
            Of(membership) => ClaimValue::Digest(measured.shown_by(membership)),
        };
        Comparison::Differs {
            expected,
            severity: Severity::Contraindicates,
        }
    }
}

/// What PCR 15 says: zero on a new node, extended with the cluster id on a member.
pub(crate) fn measured_membership(register: PcrValue) -> MeasuredMembership {
    MeasuredMembership::new(register.digest(), PcrValue::ZERO.digest(), register_of)
}

fn register_of(membership: &Membership) -> Digest {
    events(membership)
        .iter()
        .fold(PcrValue::ZERO, |register, event| register.event(*event))
        .digest()
}

/// What is measured into PCR 15, in this order.
pub(crate) fn events(membership: &Membership) -> [&[u8; 32]; 1] {
    let Membership { cluster } = membership;
    [cluster.as_bytes()]
}
