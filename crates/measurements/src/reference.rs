use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{PcrIndex, PcrValue};

/// Longer documents are refused, in bytes. A real one has about 2 KiB.
const MAX_DOCUMENT_LEN: usize = 64 * 1024;

/// The values of a node's measured registers after it booted a given image and before it is part of a cluster.
///
/// They are computed from the image's files, never read off a running machine. The set is never empty. A register that is not in
/// it is not appraised, so registers that must be zero are listed as zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct ReferenceValues {
    image: String,
    pcrs: BTreeMap<PcrIndex, ReferenceValue>,
}

/// The expectation for one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceValue {
    /// The only accepted value.
    pub expected: PcrValue,
    /// The consequence of another value.
    pub enforcement: Enforcement,
}

/// The consequence of a register that differs from its reference value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enforcement {
    /// The node is contraindicated.
    Required,
    /// The verdict is a warning, which releases no key.
    Warn,
}

/// A document that holds no usable reference values.
#[derive(Debug, thiserror::Error)]
pub enum ParseReferenceValuesError {
    /// Longer than any real document.
    #[error("the reference values have {actual} bytes, at most {MAX_DOCUMENT_LEN} are accepted")]
    TooLong {
        /// Length in bytes.
        actual: usize,
    },
    /// Not JSON of the documented form.
    #[error("the reference values are malformed")]
    Json(#[from] serde_json::Error),
}

/// A well-formed document that is refused nevertheless.
#[derive(Debug, thiserror::Error)]
enum InvalidDocument {
    #[error("version {0} is not supported, expected 1")]
    Version(u32),
    #[error("no register is required: such a document would accept every node")]
    NothingRequired,
    #[error("PCR 15 must be required and zero: it is reserved for the cluster id")]
    ClusterIdRegister,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    image: String,
    pcrs: BTreeMap<PcrIndex, ReferenceValue>,
}

impl ReferenceValues {
    /// Reference values for the image with this name.
    ///
    /// PCR 15 is added: it must be zero until the node is part of a cluster.
    #[must_use]
    pub fn new(image: impl Into<String>, required: BTreeMap<PcrIndex, PcrValue>) -> Self {
        let required_value = |expected| ReferenceValue {
            expected,
            enforcement: Enforcement::Required,
        };
        let mut pcrs: BTreeMap<_, _> = required
            .into_iter()
            .map(|(index, value)| (index, required_value(value)))
            .collect();
        pcrs.insert(PcrIndex::CLUSTER_ID, required_value(PcrValue::ZERO));
        Self {
            image: image.into(),
            pcrs,
        }
    }

    /// Parses the JSON document that the image builder writes.
    ///
    /// # Errors
    /// When the document is too long, has an unknown field, another version, or requires nothing.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseReferenceValuesError> {
        if bytes.len() > MAX_DOCUMENT_LEN {
            return Err(ParseReferenceValuesError::TooLong { actual: bytes.len() });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Renders the JSON document, ending in a newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("maps with integer keys and hex strings are JSON");
        json.push('\n');
        json
    }

    /// The name and version of the image.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The expectations by register.
    #[must_use]
    pub fn pcrs(&self) -> &BTreeMap<PcrIndex, ReferenceValue> {
        &self.pcrs
    }

    /// The values for the same image as a member of a cluster: PCR 15 holds the measured cluster id instead of zero.
    #[must_use]
    pub fn for_member(&self, cluster_id: &[u8; 32]) -> Self {
        let mut member = self.clone();
        let expected = PcrValue::ZERO.event(cluster_id);
        member.pcrs.insert(
            PcrIndex::CLUSTER_ID,
            ReferenceValue {
                expected,
                enforcement: Enforcement::Required,
            },
        );
        member
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

impl TryFrom<Document> for ReferenceValues {
    type Error = String;

    fn try_from(document: Document) -> Result<Self, Self::Error> {
        check(&document).map_err(|problem| problem.to_string())?;
        Ok(Self {
            image: document.image,
            pcrs: document.pcrs,
        })
    }
}

fn check(document: &Document) -> Result<(), InvalidDocument> {
    if document.version != 1 {
        return Err(InvalidDocument::Version(document.version));
    }
    let required = |(index, value): (&PcrIndex, &ReferenceValue)| {
        *index != PcrIndex::CLUSTER_ID && value.enforcement == Enforcement::Required
    };
    if !document.pcrs.iter().any(required) {
        return Err(InvalidDocument::NothingRequired);
    }
    let reserved = ReferenceValue {
        expected: PcrValue::ZERO,
        enforcement: Enforcement::Required,
    };
    if document.pcrs.get(&PcrIndex::CLUSTER_ID) != Some(&reserved) {
        return Err(InvalidDocument::ClusterIdRegister);
    }
    Ok(())
}

impl From<ReferenceValues> for Document {
    fn from(values: ReferenceValues) -> Self {
        Self {
            version: 1,
            image: values.image,
            pcrs: values.pcrs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> ReferenceValues {
        ReferenceValues::new(
            "node v0.1.0",
            BTreeMap::from([(PcrIndex::new(4), PcrValue::new([4; 32]))]),
        )
    }

    fn check_refused(change: impl FnOnce(&mut serde_json::Value), reason: &str) {
        let mut json = serde_json::to_value(example()).unwrap();
        change(&mut json);
        let error = ReferenceValues::parse(json.to_string().as_bytes()).unwrap_err();
        let ParseReferenceValuesError::Json(error) = error else {
            panic!("{error}")
        };
        assert!(error.to_string().contains(reason), "{error}");
    }

    #[test]
    fn document_survives_a_round_trip() {
        assert_eq!(
            ReferenceValues::parse(example().to_json().as_bytes()).unwrap(),
            example()
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        check_refused(|json| json["warnOnly"] = true.into(), "unknown field");
    }

    #[test]
    fn other_versions_are_refused() {
        check_refused(|json| json["version"] = 2.into(), "version 2");
    }

    #[test]
    fn a_document_that_requires_nothing_is_refused() {
        check_refused(
            |json| json["pcrs"]["4"]["enforcement"] = "warn".into(),
            "no register is required",
        );
    }

    #[test]
    fn a_document_without_the_cluster_id_register_is_refused() {
        check_refused(
            |json| drop(json["pcrs"].as_object_mut().unwrap().remove("15")),
            "PCR 15",
        );
    }

    #[test]
    fn a_cluster_id_register_that_is_not_zero_or_only_warns_is_refused() {
        check_refused(|json| json["pcrs"]["15"]["expected"] = "01".repeat(32).into(), "PCR 15");
        check_refused(|json| json["pcrs"]["15"]["enforcement"] = "warn".into(), "PCR 15");
    }

    #[test]
    fn a_register_that_no_tpm_has_is_refused() {
        check_refused(|json| json["pcrs"]["24"] = json["pcrs"]["4"].clone(), "24");
    }

    #[test]
    fn a_digest_of_another_length_is_refused() {
        check_refused(|json| json["pcrs"]["4"]["expected"] = "00".repeat(48).into(), "");
    }

    #[test]
    fn long_documents_are_refused_unread() {
        let error = ReferenceValues::parse(&vec![b' '; MAX_DOCUMENT_LEN + 1]).unwrap_err();
        assert!(matches!(error, ParseReferenceValuesError::TooLong { .. }));
    }

    #[test]
    fn a_member_has_the_cluster_id_in_pcr_15() {
        let member = example().for_member(&[7; 32]);
        assert_eq!(
            member.pcrs()[&PcrIndex::CLUSTER_ID].expected,
            PcrValue::ZERO.event(&[7; 32])
        );
    }
}
