//! YAML documents, with errors in the words of those who edit them.

use document::DocumentError;
use serde::de::DeserializeOwned;

use crate::problems::shown;

/// Reads a YAML document.
///
/// # Errors
/// When it is not YAML, or of another form.
pub fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T, DocumentError> {
    let mut path = String::new();
    serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    })
    .map_err(|error| yaml_error(&path, &error))
}

fn yaml_error(path: &str, error: &serde_saphyr::Error) -> DocumentError {
    use serde_saphyr::Error;

    let location = error.location();
    let line = location.map_or(0, |location| usize::try_from(location.line()).unwrap_or(0));
    let value = |message: &str| DocumentError::of_value(line, path, message);
    match error.without_snippet() {
        Error::AliasError { error, .. } => yaml_error(path, error),
        // The path is not that of the key.
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            DocumentError::of_value(line, "", &format!("duplicate field `{}`", shown(key)))
        }
        Error::SerdeMissingField { field, .. } => value(&format!("missing field `{field}`")),
        Error::SerdeUnknownField { field, expected, .. } => value(&format!(
            "unknown field `{}`, expected `{}`",
            shown(field),
            expected.join("`, `")
        )),
        Error::SerdeUnknownVariant { variant, expected, .. } => value(&format!(
            "unknown variant `{variant}`, expected `{}`",
            expected.join("`, `")
        )),
        Error::SerdeInvalidType {
            unexpected, expected, ..
        } => value(&format!("invalid type: {unexpected}, expected {expected}")),
        Error::SerdeInvalidValue {
            unexpected, expected, ..
        } => value(&format!("invalid value: {unexpected}, expected {expected}")),
        Error::SerdeInvalidLength { len, expected, .. } => value(&format!("invalid length {len}, expected {expected}")),
        Error::InvalidScalar { ty, .. } => value(&format!("invalid type: string, expected {ty}")),
        Error::NullIntoString { .. } => value("invalid type: null, expected a string"),
        Error::Unexpected { expected, .. } => value(match *expected {
            expected if expected.contains("mapping") => "expected a section of keys with values",
            expected if expected.contains("sequence") => "expected a list",
            _ => "expected a string",
        }),
        Error::Message { msg, .. } => value(msg),
        Error::Eof { .. } => DocumentError::of_text(line, "the document ends early"),
        Error::MultipleDocuments { .. } => {
            DocumentError::of_text(line, "a second document begins here: remove it, or the `---` before it")
        }
        Error::UnknownAnchor { .. } => DocumentError::of_text(
            line,
            "`*` starts an unknown alias: put a string that starts like this in quotes",
        ),
        Error::Budget { .. } => DocumentError::of_text(line, "the document has more parts or levels than allowed"),
        _ => {
            let column = location.map_or(0, |location| location.column());
            let problem = format!(
                "not YAML at column {column}: look for wrong indentation, a tab, a colon too many, or a quote or bracket that is \
                 not closed"
            );
            DocumentError::of_text(line, &problem)
        }
    }
}
