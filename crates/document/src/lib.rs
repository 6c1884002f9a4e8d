//! What is wrong with a document, in the words of those who edit it: which key, on which line, and what would be right.
//!
//! The messages of parsers are those of programmers, and may quote a secret. Nothing of a value gets into ours, except a
//! word that is not one of those that are known.

mod keys;

use std::fmt;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use crate::keys::KeysOnce;

/// More of a word is not shown.
const MAX_SHOWN: usize = 64;

/// A document that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentError {
    /// The line, from 1; 0 if it is not known.
    pub line: usize,
    /// The key, as `pcrs.4.expected`; empty for the document as a whole.
    pub key: String,
    /// What is wrong there and what would be right.
    pub problem: String,
}

/// Reads a JSON document. Every key is given once, also in maps and in what `T` ignores: readers of one document must not
/// see different values.
///
/// # Errors
/// When it is not JSON, or of another form.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DocumentError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut deserializer);
    let value = read.map_err(|error| json_error(bytes, &error.path().to_string(), error.inner()))?;
    deserializer.end().map_err(|error| json_error(bytes, "", &error))?;
    check_keys(bytes)?;
    Ok(value)
}

fn check_keys(bytes: &[u8]) -> Result<(), DocumentError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize(&mut deserializer) {
        Ok(KeysOnce) => Ok(()),
        Err(error) => Err(json_error(bytes, &error.path().to_string(), error.inner())),
    }
}

fn json_error(bytes: &[u8], path: &str, error: &serde_json::Error) -> DocumentError {
    let line = error.line();
    match error.classify() {
        Category::Data => {
            // The place is told once.
            let place = format!(" at line {line} column {}", error.column());
            let message = error.to_string();
            DocumentError::of_value(line, path, message.strip_suffix(&place).unwrap_or(&message))
        }
        _ if bytes.trim_ascii().is_empty() => DocumentError::of_text(0, "the document is empty"),
        Category::Eof => {
            DocumentError::of_text(line, "the document ends early: a quote, bracket or brace is not closed")
        }
        // The parser says so of a number, for instance, where one of some words is expected.
        Category::Syntax if serde_json::from_slice::<IgnoredAny>(bytes).is_ok() => {
            DocumentError::of_value(line, path, "is of the wrong kind")
        }
        Category::Syntax | Category::Io => {
            let problem = format!(
                "not JSON at column {}: look for a missing or extra comma, quote, bracket or brace",
                error.column()
            );
            DocumentError::of_text(line, &problem)
        }
    }
}

impl DocumentError {
    /// A text that is not a document at all.
    #[must_use]
    pub fn of_text(line: usize, problem: &str) -> Self {
        Self {
            line,
            key: String::new(),
            problem: problem.to_owned(),
        }
    }

    /// A value that does not fit, from what a [`serde::de::Error`] says about it.
    #[must_use]
    pub fn of_value(line: usize, path: &str, message: &str) -> Self {
        let (key, problem) = in_words(message);
        // What a path cannot tell is a dot or a question mark.
        let path = path.trim_end_matches('?').trim_matches('.');
        let key = match key {
            // The path of an unknown key ends with it, that of a missing one does not.
            Some(key) if path == key || path.ends_with(&format!(".{key}")) => path.to_owned(),
            Some(key) if path.is_empty() => key,
            Some(key) => format!("{path}.{key}"),
            None => path.to_owned(),
        };
        Self { line, key, problem }
    }
}

/// The messages are those that serde gives every deserializer (provided methods of [`serde::de::Error`]).
fn in_words(message: &str) -> (Option<String>, String) {
    if let Some(key) = message.strip_prefix("missing field ") {
        return (Some(unquoted(key)), "is missing".to_owned());
    }
    if let Some(key) = message.strip_prefix("duplicate field ") {
        return (Some(unquoted(key)), "is given twice: keep one".to_owned());
    }
    if let Some((key, expected)) = split(message, "unknown field ") {
        return (
            Some(unquoted(key)),
            format!("is an unknown key, expected {}", choice(expected)),
        );
    }
    if let Some((found, expected)) = split(message, "unknown variant ") {
        let found: String = unquoted(found).chars().take(MAX_SHOWN).collect();
        return (None, format!("is {found:?}, expected {}", choice(expected)));
    }
    if let Some((unexpected, expected)) = split(message, "invalid type: ") {
        let problem = format!("is {}, expected {}", kind(unexpected), expected_kind(expected));
        return (None, problem);
    }
    if let Some((_, expected)) = split(message, "invalid value: ") {
        return (None, format!("cannot be used, expected {}", expected_kind(expected)));
    }
    if let Some((length, expected)) = split(message, "invalid length ") {
        return (
            None,
            format!("has {length} entries, expected {}", expected_kind(expected)),
        );
    }
    // One of our own.
    (None, message.to_owned())
}

fn split<'a>(message: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    // What is quoted may hold the words between the two.
    message.strip_prefix(prefix)?.rsplit_once(", expected ")
}

fn unquoted(text: &str) -> String {
    text.trim_matches('`').to_owned()
}

/// "one of `a`, `b`, `c`", "`a` or `b`" or "`a`".
fn choice(expected: &str) -> String {
    let names: Vec<_> = expected.split('`').skip(1).step_by(2).collect();
    match names.as_slice() {
        [] => "nothing".to_owned(),
        [name] => (*name).to_owned(),
        [names @ .., last] => format!("{} or {last}", names.join(", ")),
    }
}

fn kind(unexpected: &str) -> &str {
    // Before the value, which is not told.
    let kind = unexpected.split(['`', '"']).next().unwrap_or_default().trim();
    match kind {
        "string" | "character" => "a string",
        "integer" | "floating point" | "floating point number" => "a number",
        "boolean" => "true or false",
        "map" => "a section",
        "sequence" => "a list",
        "null" | "unit value" | "Option value" => "empty",
        _ => "something else",
    }
}

fn expected_kind(expected: &str) -> String {
    let words = expected.trim_start_matches("a ").trim_start_matches("an ");
    let kind = match words {
        "string" | "borrowed string" | "str" | "string or bytes" => "a string",
        "boolean" => "true or false",
        "map" => "a section",
        "sequence" => "a list",
        "integer" | "u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        _ if words.starts_with("struct ") || words.starts_with("internally tagged ") => "a section",
        // One of our own.
        _ => expected,
    };
    kind.to_owned()
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, key, problem } = self;
        match (*line, key.as_str()) {
            (0, "") => f.write_str(problem),
            (0, key) => write!(f, "{key}: {problem}"),
            (line, "") => write!(f, "line {line}: {problem}"),
            (line, key) => write!(f, "line {line}, {key}: {problem}"),
        }
    }
}

impl std::error::Error for DocumentError {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only errors are looked at")]
    struct Document {
        version: u32,
        parts: BTreeMap<String, Part>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    #[expect(dead_code, reason = "only errors are looked at")]
    struct Part {
        name: String,
        kind: Kind,
        pair: (bool, bool),
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Kind {
        Red,
        Green,
        Blue,
    }

    const GOOD: &str =
        "{\"version\": 1, \"parts\": {\n\"a\": {\"name\": \"x\", \"kind\": \"red\", \"pair\": [true, true]}}}";

    fn check(from: &str, to: &str, expected: &str) {
        assert!(GOOD.contains(from), "{from}");
        let text = GOOD.replace(from, to);
        let error = from_json::<Document>(text.as_bytes()).expect_err(&text).to_string();
        assert_eq!(error, expected, "{text}");
    }

    #[test]
    fn a_key_is_given_once_wherever_it_is() {
        for (text, expected) in [
            ("{\"a\": 1,\n\"a\": 1}", "line 2, a: is given twice: keep one"),
            (
                "{\"a\": {\"b\": 1,\n\"b\": 1}}",
                "line 2, a.b: is given twice: keep one",
            ),
            (
                "{\"a\": [0,\n{\"b\": 1, \"\\u0062\": 1}]}",
                "line 2, a[1].b: is given twice: keep one",
            ),
        ] {
            let map = from_json::<BTreeMap<String, IgnoredAny>>(text.as_bytes());
            assert_eq!(map.unwrap_err().to_string(), expected);
            assert_eq!(
                from_json::<IgnoredAny>(text.as_bytes()).unwrap_err().to_string(),
                expected
            );
        }
        let good = "[{\"a\": null, \"b\": {\"a\": -1}}, {\"a\": true, \"b\": 0.5}, \"a\", \"a\", 1]";
        from_json::<IgnoredAny>(good.as_bytes()).unwrap();
    }

    #[test]
    fn errors_are_told_by_line_and_key() {
        from_json::<Document>(GOOD.as_bytes()).unwrap();
        for (from, to, expected) in [
            ("\"version\": 1,", "", "line 2, version: is missing"),
            (
                "\"version\": 1",
                "\"version\": -1",
                "line 1, version: cannot be used, expected a whole number",
            ),
            (
                "\"version\": 1",
                "\"version\": \"s3cret, expected x\"",
                "line 1, version: is a string, expected a whole number",
            ),
            (
                "\"version\": 1",
                "\"version\": 1, \"version\": 2",
                "line 1, version: is given twice: keep one",
            ),
            ("\"name\": \"x\",", "", "line 2, parts.a.name: is missing"),
            (
                "\"name\": \"x\"",
                "\"name\": null",
                "line 2, parts.a.name: is empty, expected a string",
            ),
            (
                "\"name\": \"x\"",
                "\"name\": 5.5",
                "line 2, parts.a.name: is a number, expected a string",
            ),
            (
                "\"name\": \"x\"",
                "\"name\": [\"x\"]",
                "line 2, parts.a.name: is a list, expected a string",
            ),
            (
                "\"name\"",
                "\"nmae\"",
                "line 2, parts.a.nmae: is an unknown key, expected name, kind or pair",
            ),
            (
                "\"red\"",
                "\"black\"",
                "line 2, parts.a.kind: is \"black\", expected red, green or blue",
            ),
            ("\"red\"", "5", "line 2, parts.a.kind: is of the wrong kind"),
            (
                "[true, true]",
                "[true]",
                "line 2, parts.a.pair: has 1 entries, expected a tuple of size 2",
            ),
            (
                "{\n\"a\"",
                "{\n\"a\": true, \"b\"",
                "line 2, parts.a: is true or false, expected a section",
            ),
            (
                "}}}",
                "}}",
                "line 2: the document ends early: a quote, bracket or brace is not closed",
            ),
            (
                "1,",
                "1",
                "line 1: not JSON at column 15: look for a missing or extra comma, quote, bracket or brace",
            ),
            (
                "}}}",
                "}}}}",
                "line 2: not JSON at column 58: look for a missing or extra comma, quote, bracket or brace",
            ),
        ] {
            check(from, to, expected);
        }
        for empty in ["", " \n"] {
            let error = from_json::<Document>(empty.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), "the document is empty");
        }
    }
}
