use attestation::{Claim, Comparison, Expectations, ExpectedMembership, MeasuredMembership, Membership, Severity};
use digest::Digest;
use document::DocumentError;
use measurements::{Enforcement, PcrIndex, PcrReferences, PcrValue, PcrValues, ReferenceValue};

/// Which nodes are acceptable: those that booted this image and have said this about themselves.
#[derive(Clone, Debug)]
pub struct PcrPolicy {
    image: PcrReferences,
    membership: ExpectedMembership,
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

    /// What the node must have measured into PCR 15.
    pub(crate) fn membership(&self) -> &ExpectedMembership {
        &self.membership
    }

    /// Says of each register how it compares with the image's values. PCR 15 is left to the membership, whatever they say.
    pub(crate) fn image_claims(&self, pcrs: &PcrValues) -> Vec<Claim> {
        let claim = |(index, value): (&PcrIndex, &PcrValue)| Claim {
            name: format!("PCR {index}"),
            actual: value.digest().into(),
            comparison: self.compare(*index, *value),
        };
        let of_image = pcrs.iter().filter(|(index, _)| **index != PcrIndex::CLUSTER_ID);
        of_image.map(claim).collect()
    }

    fn compare(&self, index: PcrIndex, actual: PcrValue) -> Comparison {
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
}

/// What PCR 15 says: zero on a new node, extended with the cluster id on a member.
pub(crate) fn measured_membership(register: PcrValue) -> MeasuredMembership {
    MeasuredMembership::new("PCR 15", register.digest(), PcrValue::ZERO.digest(), register_of)
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
