use cluster_types::Variant;
use document::DocumentError;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

/// Longer documents are refused, in bytes. A real one has about 2 KiB.
const MAX_DOCUMENT_LEN: usize = 64 * 1024;
/// The one version that is read. Version 1 named no variant.
const VERSION: u32 = 2;

/// The document of ReferenceValues: what a node with one certain image shows before it is part of a cluster, in the words of
/// one attestation variant.
///
/// Computed from the files of the image, never read off a running machine. The values belong to the technology of the
/// variant, which refuses them when they would accept every node; [`PcrReferences`](crate::PcrReferences) are a TPM's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceValues {
    variant: Variant,
    image: String,
    /// As it was written, so that mistakes in the values have a line too.
    document: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<T> {
    version: Version,
    variant: Variant,
    image: String,
    values: T,
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
    Json(#[from] DocumentError),
    /// For another variant than the configured one.
    #[error(transparent)]
    Variant(#[from] AnotherVariant),
}

/// Reference values for one variant where those of another are needed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("reference values are for variant {actual}, expected {expected}")]
pub struct AnotherVariant {
    /// What the document says.
    pub actual: Variant,
    /// What is configured.
    pub expected: Variant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct Version;

impl ReferenceValues {
    /// Reference values for the image with this name.
    ///
    /// # Panics
    /// When the values cannot be JSON, which is an error of their type.
    #[must_use]
    pub fn new(variant: Variant, image: impl Into<String>, values: &impl Serialize) -> Self {
        let document = Document {
            version: Version,
            variant,
            image: image.into(),
            values,
        };
        let json = serde_json::to_string_pretty(&document).expect("reference values are maps, numbers and text");
        Self {
            variant,
            image: document.image,
            document: json + "\n",
        }
    }

    /// Parses the JSON document that the image builder writes.
    ///
    /// # Errors
    /// When the document is too long, has an unknown field, a key twice or another version.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseReferenceValuesError> {
        if bytes.len() > MAX_DOCUMENT_LEN {
            return Err(ParseReferenceValuesError::TooLong { actual: bytes.len() });
        }
        let Document {
            version: Version,
            variant,
            image,
            values: IgnoredAny,
        } = document::from_json(bytes)?;
        let document = String::from_utf8(bytes.to_vec());
        Ok(Self {
            variant,
            image,
            document: document.map_err(|_| DocumentError::of_text(0, "the document is not UTF-8"))?,
        })
    }

    /// Reads the document of this variant, and no other.
    ///
    /// # Errors
    /// When it cannot be parsed, or is another variant's.
    pub fn parse_for(variant: Variant, bytes: &[u8]) -> Result<Self, ParseReferenceValuesError> {
        let values = Self::parse(bytes)?;
        values.must_be_for(variant)?;
        Ok(values)
    }

    /// Checks whose words the values are.
    ///
    /// # Errors
    /// When they are another variant's.
    pub fn must_be_for(&self, expected: Variant) -> Result<(), AnotherVariant> {
        let actual = self.variant;
        if actual == expected {
            Ok(())
        } else {
            Err(AnotherVariant { actual, expected })
        }
    }

    /// The JSON document, as it was parsed.
    #[must_use]
    pub fn to_json(&self) -> String {
        self.document.clone()
    }

    /// The variant whose words the values are.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The name and version of the image.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The values, for the technology they belong to.
    ///
    /// # Errors
    /// When they are not what the technology has.
    pub fn values<T: DeserializeOwned>(&self) -> Result<T, DocumentError> {
        let document: Document<T> = document::from_json(self.document.as_bytes())?;
        Ok(document.values)
    }
}

impl TryFrom<u32> for Version {
    type Error = String;

    fn try_from(version: u32) -> Result<Self, Self::Error> {
        if version == VERSION {
            Ok(Self)
        } else {
            Err(format!("version {version} is not supported, expected {VERSION}"))
        }
    }
}

impl From<Version> for u32 {
    fn from(_: Version) -> Self {
        VERSION
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    fn example() -> ReferenceValues {
        ReferenceValues::new(Variant::ALL[0], "node v0.1.0", &[1, 2])
    }

    fn check_refused(change: impl FnOnce(&mut Value), reason: &str) {
        let mut json = serde_json::from_str(&example().to_json()).unwrap();
        change(&mut json);
        let error = ReferenceValues::parse(json.to_string().as_bytes()).unwrap_err();
        let ParseReferenceValuesError::Json(error) = error else {
            panic!("{error}")
        };
        assert!(error.to_string().contains(reason), "{error}");
    }

    #[test]
    fn document_survives_a_round_trip() {
        let read = ReferenceValues::parse(example().to_json().as_bytes()).unwrap();
        assert_eq!(read, example());
        assert_eq!(read.values::<Vec<u8>>().unwrap(), [1, 2]);
        assert!(read.values::<String>().is_err());
    }

    #[test]
    fn mistakes_in_the_values_have_a_line() {
        let error = example().values::<Vec<String>>().unwrap_err();
        assert_eq!(error.to_string(), "line 6, values[0]: is a number, expected a string");
    }

    #[test]
    fn keys_of_the_values_are_given_once() {
        let twice =
            r#"{"version": 2, "variant": "qemu-vtpm", "image": "x", "values": {"4": 1, "#.to_owned() + "\n\"4\": 2}}";
        let once = twice.replace("\"4\": 2", "\"5\": 2");
        let read = ReferenceValues::parse(once.as_bytes()).unwrap();
        assert_eq!(read.values::<BTreeMap<String, u8>>().unwrap().len(), 2);
        let error = ReferenceValues::parse(twice.as_bytes()).unwrap_err();
        let ParseReferenceValuesError::Json(error) = error else {
            panic!("{error}")
        };
        assert_eq!(error.to_string(), "line 2, values.4: is given twice: keep one");
    }

    #[test]
    fn unknown_fields_are_refused() {
        check_refused(|json| json["warnOnly"] = true.into(), "is an unknown key");
    }

    #[test]
    fn other_versions_are_refused() {
        check_refused(|json| json["version"] = 1.into(), "version 1");
        check_refused(|json| json["version"] = 3.into(), "version 3");
    }

    #[test]
    fn a_document_without_a_known_variant_is_refused() {
        check_refused(|json| drop(json.as_object_mut().unwrap().remove("variant")), "variant");
        check_refused(|json| json["variant"] = "dummy".into(), "dummy");
    }

    #[test]
    fn a_document_of_another_variant_is_refused_by_both_names() {
        let [one, other] = [Variant::ALL[0], Variant::ALL[1]];
        let document = ReferenceValues::new(one, "image", &[1]).to_json();
        assert!(ReferenceValues::parse_for(one, document.as_bytes()).is_ok());
        let error = ReferenceValues::parse_for(other, document.as_bytes()).unwrap_err();
        let expected = format!("reference values are for variant {one}, expected {other}");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn long_documents_are_refused_unread() {
        let error = ReferenceValues::parse(&vec![b' '; MAX_DOCUMENT_LEN + 1]).unwrap_err();
        assert!(matches!(error, ParseReferenceValuesError::TooLong { .. }));
    }
}
