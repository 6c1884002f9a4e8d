use attestation::Finding;
use cluster_types::ClusterId;
use measurements::{Enforcement, PcrIndex, PcrValue, PcrValues, ReferenceValues};

/// Which nodes are acceptable: those that booted one of these images and stand in this relation to a cluster.
#[derive(Clone, Debug)]
pub struct PcrPolicy {
    first: ReferenceValues,
    others: Vec<ReferenceValues>,
    membership: Membership,
}

/// What PCR 15 must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// The node belongs to no cluster yet: zero.
    New,
    /// The node belongs to this cluster.
    Of(ClusterId),
    /// The node belongs to some cluster; the caller compares which one as soon as it can know.
    Any,
}

impl PcrPolicy {
    /// Accepts one image.
    #[must_use]
    pub fn new(image: ReferenceValues, membership: Membership) -> Self {
        Self {
            first: image,
            others: Vec::new(),
            membership,
        }
    }

    /// Accepts another image too, for the time of an upgrade.
    #[must_use]
    pub fn or(mut self, image: ReferenceValues) -> Self {
        self.others.push(image);
        self
    }

    /// Every register that any accepted image judges; a quote must cover them all.
    pub(crate) fn judged(&self) -> impl Iterator<Item = PcrIndex> + '_ {
        self.images().flat_map(|image| image.pcrs().keys().copied())
    }

    /// Compares with each image and keeps the findings of the one that fits best.
    pub(crate) fn findings(&self, pcrs: &PcrValues) -> Vec<Finding> {
        let mut findings = self
            .images()
            .map(|image| differences(image, pcrs))
            .min_by_key(|found| (found.iter().any(is_required), found.len()))
            .expect("a policy holds at least one image");
        findings.extend(self.membership.finding(pcrs));
        findings
    }

    fn images(&self) -> impl Iterator<Item = &ReferenceValues> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl Membership {
    fn finding(self, pcrs: &PcrValues) -> Option<Finding> {
        let index = PcrIndex::CLUSTER_ID;
        let actual = pcrs.get(&index).copied().unwrap_or(PcrValue::ZERO);
        let expected = match self {
            Self::New => PcrValue::ZERO,
            Self::Of(cluster) => PcrValue::ZERO.event(cluster.as_bytes()),
            Self::Any => return (actual == PcrValue::ZERO).then_some(Finding::NotAMember),
        };
        (actual != expected).then_some(Finding::Pcr {
            index,
            actual,
            expected,
            required: true,
        })
    }
}

/// What differs from one image, leaving PCR 15 to [`Membership`].
fn differences(image: &ReferenceValues, pcrs: &PcrValues) -> Vec<Finding> {
    let judged = image.pcrs().iter().filter(|(index, _)| **index != PcrIndex::CLUSTER_ID);
    judged
        .filter_map(|(index, reference)| {
            let actual = *pcrs.get(index)?;
            (actual != reference.expected).then_some(Finding::Pcr {
                index: *index,
                actual,
                expected: reference.expected,
                required: reference.enforcement == Enforcement::Required,
            })
        })
        .collect()
}

fn is_required(finding: &Finding) -> bool {
    matches!(finding, Finding::Pcr { required: true, .. } | Finding::NotAMember)
}
