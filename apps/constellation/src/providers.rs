use anyhow::Result;
use cluster_config::{ProviderConfig, Workspace};
use infrastructure::Provider;

/// A program's providers of machines.
pub trait Providers: Send + Sync {
    /// The provider that a configuration names.
    ///
    /// # Errors
    /// When it cannot work on this machine at all.
    fn configured(&self, workspace: &Workspace, config: &ProviderConfig) -> Result<Box<dyn Provider>>;

    /// The provider whose machines may be in a workspace, for commands that start nothing and must work without a configuration.
    ///
    /// # Errors
    /// When it cannot work on this machine at all.
    fn existing(&self, workspace: &Workspace) -> Result<Box<dyn Provider>>;
}
