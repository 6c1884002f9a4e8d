//! A failure that keeps recurring is logged only when it changes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The last failure of each subject.
#[derive(Default)]
pub(crate) struct Repeated {
    last: Mutex<BTreeMap<String, String>>,
}

impl Repeated {
    /// Whether this failure is new for its subject and should be logged.
    pub(crate) fn is_news(&self, subject: &str, failure: &str) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.get(subject).is_some_and(|last| last == failure) {
            return false;
        }
        last.insert(subject.to_owned(), failure.to_owned());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_news() {
        let repeated = Repeated::default();
        assert!(repeated.is_news("10.42.1.100", "refused"));
        assert!(!repeated.is_news("10.42.1.100", "refused"));
        assert!(repeated.is_news("10.42.1.101", "refused"));
        assert!(repeated.is_news("10.42.1.100", "timed out"));
    }
}
