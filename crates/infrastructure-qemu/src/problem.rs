use std::fmt;

/// Something that this machine lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreflightProblem {
    /// What is missing.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for PreflightProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}
