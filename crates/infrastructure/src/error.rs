use std::error::Error;

/// A provider could not do its work. Which errors there are is the provider's own; callers only report them.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ProviderError(Box<dyn Error + Send + Sync>);

impl ProviderError {
    /// Wraps a provider's own error.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }
}
