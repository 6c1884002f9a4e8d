use std::fmt;

use crate::raw::{Given, Kind, Unknown};

/// One thing that is wrong in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, as written in the file: `nodeGroups.worker_default.vcpus`.
    pub path: String,
    /// What is wrong with it, and what would be right.
    pub message: String,
}

/// Everything that is wrong with a configuration. Never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigProblems(Vec<Problem>);

impl ConfigProblems {
    /// Notes a problem.
    pub(crate) fn add(&mut self, path: impl Into<String>, message: impl fmt::Display) {
        self.0.push(Problem {
            path: path.into(),
            message: message.to_string(),
        });
    }

    /// Returns the value, or notes why there is none.
    pub(crate) fn keep<T, E: fmt::Display>(&mut self, path: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(path, error)).ok()
    }

    /// The value of a required key, if it passes the check.
    pub(crate) fn required<T: Kind, U, E: fmt::Display>(
        &mut self,
        path: &str,
        given: Given<T>,
        check: impl FnOnce(T) -> Result<U, E>,
    ) -> Option<U> {
        match given {
            Given::Value(value) => self.keep(path, check(value)),
            Given::Other(problem) => self.keep(path, Err(problem)),
            Given::Nothing => self.keep(path, Err(format!("is missing, expected {}", T::EXPECTED))),
        }
    }

    /// The value of a key, or its default, if that passes the check.
    pub(crate) fn optional<T: Kind, U, E: fmt::Display>(
        &mut self,
        path: &str,
        given: Given<T>,
        default: impl Into<T>,
        check: impl FnOnce(T) -> Result<U, E>,
    ) -> Option<U> {
        match given {
            Given::Nothing => self.required(path, Given::Value(default.into()), check),
            given => self.required(path, given, check),
        }
    }

    /// Notes the unknown keys of a section.
    pub(crate) fn refuse(&mut self, section: &str, unknown: &Unknown, known: &str) {
        for key in unknown.keys() {
            let key = shown(key);
            let path = if section.is_empty() {
                key
            } else {
                format!("{section}.{key}")
            };
            self.add(path, format!("is an unknown key, expected {known}"));
        }
    }

    /// The value, if nothing is wrong.
    pub(crate) fn into_result<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }

    /// The problems in the order of the file's documentation.
    #[must_use]
    pub fn all(&self) -> &[Problem] {
        &self.0
    }
}

/// An unknown key of the file, on one line.
pub(crate) fn shown(key: &str) -> String {
    key.chars().take(64).flat_map(char::escape_debug).collect()
}

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [problem] => write!(f, "{problem}"),
            problems => {
                write!(f, "{} problems:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigProblems {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}
