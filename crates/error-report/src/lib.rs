//! Errors with all their causes on one line, and what to do about a missing permission.

mod denied;

use std::error::Error;
use std::fmt;

pub use denied::{User, explain_denied, explain_denied_in};

/// Displays an error and all its causes, for a log or an operator, but never for a peer.
///
/// ```
/// let error = std::io::Error::new(std::io::ErrorKind::Other, "disk on fire");
/// assert_eq!(error_report::Chain(&error).to_string(), "disk on fire");
/// ```
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            // Transparent errors repeat the error they wrap.
            let text = cause.to_string();
            if text != last {
                write!(f, ": {text}")?;
            }
            last = text;
            source = cause.source();
        }
        Ok(())
    }
}
