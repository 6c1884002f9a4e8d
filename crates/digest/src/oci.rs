//! Digests with their algorithm, `sha256:` and the hex digits (OCI image spec 1.1, "Digests"). The functions also serve
//! as `#[serde(with = "digest::oci")]`.

use serde::{Deserialize, Deserializer, Serializer};

use crate::{Digest, shorten};

/// A text that is not a digest with its algorithm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not \"sha256:\" followed by 64 lower-case hex digits")]
pub struct ParseOciDigestError(String);

/// `sha256:` and the hex digits.
#[must_use]
pub fn format(digest: &Digest) -> String {
    format!("{PREFIX}{digest}")
}

/// Parses `sha256:` and the hex digits.
///
/// # Errors
/// For any other algorithm or spelling.
pub fn parse(text: &str) -> Result<Digest, ParseOciDigestError> {
    text.strip_prefix(PREFIX)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| ParseOciDigestError(shorten(text)))
}

/// Serializes as `sha256:<hex>`, for `#[serde(with)]`.
///
/// # Errors
/// When the serializer fails.
pub fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(digest))
}

/// Deserializes from `sha256:<hex>`, for `#[serde(with)]`.
///
/// # Errors
/// When the text is not such a digest.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(serde::de::Error::custom)
}

const PREFIX: &str = "sha256:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_in_lower_case_is_read() {
        let digest = Digest::of(b"content");
        let text = format(&digest);
        assert_eq!(parse(&text), Ok(digest));
        for bad in [
            "",
            "sha256:",
            "sha256:aa",
            &digest.to_string(),
            &text.replace("256", "512"),
            &format!("sha256:{}", digest.to_string().to_uppercase()),
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
