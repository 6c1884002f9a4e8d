use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{PcrIndex, PcrValue};

/// The reference values of a TPM: what the registers hold before the node is part of a cluster.
///
/// A document lists the registers of the image, which is checked when it is read. A register that is not in it is not compared: what must be zero is listed as zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct PcrReferences {
    pcrs: BTreeMap<PcrIndex, ReferenceValue>,
}

/// The expectation for one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceValue {
    /// The one accepted value.
    pub expected: PcrValue,
    /// What another value means.
    pub enforcement: Enforcement,
}

/// What follows when a register differs from its reference value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcement {
    /// The node is contraindicated.
    Required,
    /// The verdict is a warning, which releases no key.
    Warn,
}

/// Why well-formed values still are refused.
#[derive(Debug, thiserror::Error)]
enum InvalidReferences {
    #[error("PCR {0} must be required: without it, another image could pass for this one")]
    Image(PcrIndex),
    #[error("PCR 15 must be required and zero: it is reserved for the membership")]
    Membership,
    #[error("PCR 14 must not be listed: it is reserved for the operator, whom no image knows")]
    Operator,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    pcrs: BTreeMap<PcrIndex, ReferenceValue>,
}

impl PcrReferences {
    /// Requires these registers.
    ///
    /// PCR 15 is added: it must be zero until the node is part of a cluster.
    #[must_use]
    pub fn new(required: BTreeMap<PcrIndex, PcrValue>) -> Self {
        let mut pcrs: BTreeMap<_, _> = required
            .into_iter()
            .map(|(index, value)| (index, ReferenceValue::required(value)))
            .collect();
        pcrs.insert(PcrIndex::MEMBERSHIP, ReferenceValue::required(PcrValue::ZERO));
        Self { pcrs }
    }

    /// The expectations by register.
    #[must_use]
    pub fn pcrs(&self) -> &BTreeMap<PcrIndex, ReferenceValue> {
        &self.pcrs
    }

    /// Makes one register a warning instead of a requirement, for values that are known to differ between hosts.
    #[must_use]
    pub fn with_warning(mut self, index: PcrIndex, expected: PcrValue) -> Self {
        self.pcrs.insert(
            index,
            ReferenceValue {
                expected,
                enforcement: Enforcement::Warn,
            },
        );
        self
    }
}

impl ReferenceValue {
    const fn required(expected: PcrValue) -> Self {
        Self {
            expected,
            enforcement: Enforcement::Required,
        }
    }
}

impl TryFrom<Unchecked> for PcrReferences {
    type Error = String;

    fn try_from(Unchecked { pcrs }: Unchecked) -> Result<Self, Self::Error> {
        check(&pcrs).map_err(|problem| problem.to_string())?;
        Ok(Self { pcrs })
    }
}

fn check(pcrs: &BTreeMap<PcrIndex, ReferenceValue>) -> Result<(), InvalidReferences> {
    let is_required = |index| matches!(pcrs.get(index), Some(value) if value.enforcement == Enforcement::Required);
    if let Some(missing) = PcrIndex::IMAGE.iter().find(|index| !is_required(index)) {
        return Err(InvalidReferences::Image(*missing));
    }
    if pcrs.get(&PcrIndex::MEMBERSHIP) != Some(&ReferenceValue::required(PcrValue::ZERO)) {
        return Err(InvalidReferences::Membership);
    }
    if pcrs.contains_key(&PcrIndex::OPERATOR) {
        return Err(InvalidReferences::Operator);
    }
    Ok(())
}

impl From<PcrReferences> for Unchecked {
    fn from(PcrReferences { pcrs }: PcrReferences) -> Self {
        Self { pcrs }
    }
}

#[cfg(test)]
mod tests {
    use cluster_types::Variant;
    use serde_json::Value;

    use super::*;
    use crate::ReferenceValues;

    fn example() -> PcrReferences {
        PcrReferences::new(PcrIndex::IMAGE.map(|index| (index, PcrValue::new([4; 32]))).into())
    }

    fn check_refused(change: impl FnOnce(&mut Value), reason: &str) {
        let mut json = serde_json::to_value(example()).unwrap();
        change(&mut json);
        let error = serde_json::from_value::<PcrReferences>(json).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }

    #[test]
    fn values_survive_the_document() {
        let document = ReferenceValues::new(Variant::ALL[0], "node", &example()).to_json();
        let read = ReferenceValues::parse(document.as_bytes()).unwrap();
        assert_eq!(read.values::<PcrReferences>().unwrap(), example());
    }

    #[test]
    fn unknown_fields_are_refused() {
        check_refused(|json| json["warnOnly"] = true.into(), "unknown field");
        check_refused(|json| json["pcrs"]["4"]["warnOnly"] = true.into(), "unknown field");
    }

    #[test]
    fn values_that_leave_out_a_register_of_the_image_or_only_warn_of_it_are_refused() {
        for index in ["4", "9", "11", "12", "13"] {
            let reason = format!("PCR {index} must be required");
            check_refused(|json| json["pcrs"][index]["enforcement"] = "warn".into(), &reason);
            check_refused(
                |json| drop(json["pcrs"].as_object_mut().unwrap().remove(index)),
                &reason,
            );
        }
    }

    #[test]
    fn values_without_the_register_of_the_membership_are_refused() {
        check_refused(
            |json| drop(json["pcrs"].as_object_mut().unwrap().remove("15")),
            "PCR 15",
        );
    }

    #[test]
    fn a_register_of_the_membership_that_is_not_zero_or_only_warns_is_refused() {
        check_refused(|json| json["pcrs"]["15"]["expected"] = "01".repeat(32).into(), "PCR 15");
        check_refused(|json| json["pcrs"]["15"]["enforcement"] = "warn".into(), "PCR 15");
    }

    #[test]
    fn a_register_of_the_operator_is_refused() {
        check_refused(|json| json["pcrs"]["14"] = json["pcrs"]["4"].clone(), "PCR 14");
    }

    #[test]
    fn a_register_that_no_tpm_has_is_refused() {
        check_refused(|json| json["pcrs"]["24"] = json["pcrs"]["4"].clone(), "24");
    }

    #[test]
    fn a_digest_of_another_length_is_refused() {
        check_refused(|json| json["pcrs"]["4"]["expected"] = "00".repeat(48).into(), "");
    }
}
