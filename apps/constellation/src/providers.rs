use anyhow::Result;
use cluster_config::{ProviderConfig, Workspace};
use infrastructure::Provider;

/// The providers of machines that a program has.
pub trait Providers: Send + Sync {
    /// The one that a configuration names.
    ///
    /// # Errors
    /// When it cannot work on this machine at all.
    fn configured(&self, workspace: &Workspace, config: &ProviderConfig) -> Result<Box<dyn Provider>>;

    /// The one whose machines may be in a workspace, for commands that start nothing and must work without a configuration.
    ///
    /// # Errors
    /// When it cannot work on this machine at all.
    fn existing(&self, workspace: &Workspace) -> Result<Box<dyn Provider>>;
}
