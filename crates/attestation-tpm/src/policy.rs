use attestation::{
    Claim, Comparison, Expectations, ExpectedStatements, Measured, MeasuredStatements, Membership, Severity,
    ShownStatements,
};
use cluster_types::OperatorPublicKey;
use digest::Digest;
use document::DocumentError;
use measurements::{Enforcement, PcrIndex, PcrReferences, PcrValue, PcrValues, ReferenceValue};

/// The registers that hold what a node says about itself.
pub(crate) const STATEMENTS: [PcrIndex; 2] = [PcrIndex::OPERATOR, PcrIndex::MEMBERSHIP];

/// Which nodes are acceptable: those that booted this image and have said this about themselves.
#[derive(Clone, Debug)]
pub struct PcrPolicy {
    image: PcrReferences,
    statements: ExpectedStatements,
}

impl PcrPolicy {
    /// What is expected, in registers.
    ///
    /// # Errors
    /// When the reference values are not those of a TPM, or would accept every node.
    pub fn new(expectations: &Expectations) -> Result<Self, DocumentError> {
        Ok(Self {
            image: expectations.image.values()?,
            statements: expectations.statements,
        })
    }

    /// Every register that is compared with a reference value; a quote must cover them all.
    pub(crate) fn required(&self) -> impl Iterator<Item = PcrIndex> + '_ {
        self.image.pcrs().keys().copied()
    }

    /// What the node must have measured into PCR 14 and PCR 15.
    pub(crate) fn statements(&self) -> &ExpectedStatements {
        &self.statements
    }

    /// Says of each register how it compares with the image's values. PCR 14 and PCR 15 are left to the statements, whatever they
    /// say.
    pub(crate) fn image_claims(&self, pcrs: &PcrValues) -> Vec<Claim> {
        let claim = |(index, value): (&PcrIndex, &PcrValue)| Claim {
            name: format!("PCR {index}"),
            actual: value.digest().into(),
            comparison: self.compare(*index, *value),
        };
        let of_image = pcrs.iter().filter(|(index, _)| !STATEMENTS.contains(*index));
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

/// What PCR 14 and PCR 15 say.
///
/// - PCR 14: zero after power-on, then extended with the operator's key.
/// - PCR 15: zero on a new node; on a member extended with the cluster id, then with the role.
#[must_use]
pub fn statements(shown: &ShownStatements) -> MeasuredStatements {
    let ShownStatements { operator, membership } = *shown;
    let nothing = PcrValue::ZERO.digest();
    MeasuredStatements {
        operator: Measured::new("PCR 14", operator, nothing, operator_register),
        membership: Measured::new("PCR 15", membership, nothing, membership_register),
    }
}

fn operator_register(operator: &OperatorPublicKey) -> Digest {
    PcrValue::ZERO.event(&operator.event()).digest()
}

fn membership_register(membership: &Membership) -> Digest {
    events(membership)
        .iter()
        .fold(PcrValue::ZERO, |register, event| register.event(event))
        .digest()
}

/// What is measured into PCR 15, in this order.
pub(crate) fn events(membership: &Membership) -> [&[u8]; 2] {
    let Membership { cluster, role } = membership;
    [cluster.as_bytes(), role.event()]
}
