//! The command line's arguments.

use camino::Utf8PathBuf;
use clap::builder::{NonEmptyStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use cluster_config::{ClusterNameError, MirrorSource, check_cluster_name};
use cluster_types::{ClusterId, KubernetesVersion, NodeName};
use digest::Digest;

/// Confidential Kubernetes: every node of a cluster proves what it runs before it gets a key.
#[derive(Debug, Parser)]
#[command(name = "constellation", disable_version_flag = true)]
pub(crate) struct Arguments {
    /// Folder with the cluster's files.
    #[arg(short = 'C', long, global = true, value_name = "DIR", default_value = ".", value_parser = path())]
    pub(crate) workspace: Utf8PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Work with the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Create the cluster that the configuration describes, or continue creating it.
    Apply(Confirmation),
    /// Open the state disk of a control plane that restarted. `apply` does it too, and starts machines that stopped.
    Recover,
    /// Run a small cluster on this machine.
    #[command(subcommand)]
    Mini(MiniCommand),
    /// Show the machines and nodes.
    Status,
    /// Verify every node of the cluster.
    Verify(VerifyArguments),
    /// Work with the policy that says which images nodes may run and what they install.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Work with the nodes of the cluster.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Work with copies of the audit log of a key service.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Terminate the machines and destroy their disks. Configuration and master secret are kept.
    Terminate(Confirmation),
    /// Work with mirrors of Kubernetes.
    #[command(subcommand)]
    Mirror(MirrorCommand),
    /// Show the version of this program.
    Version,
    /// Print a completion script for a shell.
    Completion {
        /// Shell to generate the script for.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Write a commented configuration. An existing one is never overwritten.
    Generate {
        /// Where the nodes will run.
        #[arg(value_enum)]
        provider: Provider,
        /// Name of the cluster.
        #[arg(long, default_value = "mini", value_parser = parse_cluster_name)]
        name: String,
        #[command(flatten)]
        sources: Sources,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Provider {
    /// QEMU virtual machines on this machine.
    Qemu,
}

/// Where the image and Kubernetes come from.
#[derive(Debug, Args)]
pub(crate) struct Sources {
    /// Folder with the node image [default in a new configuration: image].
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub(crate) image: Option<Utf8PathBuf>,
    /// Folder or http(s) address of a mirror of Kubernetes [default in a new configuration: mirror].
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) mirror: Option<MirrorSource>,
    /// Kubernetes release, such as v1.35.4 [default in a new configuration: the mirror's version].
    #[arg(short, long, value_name = "VERSION")]
    pub(crate) kubernetes: Option<KubernetesVersion>,
    /// Digest of the mirror's components.json [default in a new configuration: computed from the mirror folder].
    #[arg(long, value_name = "sha256:HEX", value_parser = digest::oci::parse)]
    pub(crate) components_digest: Option<Digest>,
}

impl Sources {
    pub(crate) fn is_any(&self) -> bool {
        let Self {
            image,
            mirror,
            kubernetes,
            components_digest,
        } = self;
        image.is_some() || mirror.is_some() || kubernetes.is_some() || components_digest.is_some()
    }
}

#[derive(Debug, Args)]
pub(crate) struct Confirmation {
    /// Do not ask for confirmation.
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MiniCommand {
    /// Create a cluster of one control plane and one worker on this machine.
    Up {
        #[command(flatten)]
        sources: Sources,
        /// `mini up` never asks; accepted so that it can be typed like `apply`.
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Terminate the cluster and remove everything that `mini up` created, including keys.
    Down(Confirmation),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Show the policy that the cluster serves, and who signed it.
    Show {
        /// Output format of the policy.
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Show which machine each node name belongs to.
    List,
    /// Take a worker out of the cluster, with its machine and its disk, and free its name.
    Remove(NodeRemoval),
}

#[derive(Debug, Args)]
pub(crate) struct NodeRemoval {
    /// Name of the worker.
    pub(crate) name: NodeName,
    /// Do not move its pods elsewhere first. Implied if its machine does not run.
    #[arg(long)]
    pub(crate) lost: bool,
    #[command(flatten)]
    pub(crate) confirmation: Confirmation,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no record was changed, removed or put in between.
    Verify {
        /// Files of one log, the oldest first: key-audit.log.2 key-audit.log.1 key-audit.log.
        #[arg(required = true, value_parser = path())]
        files: Vec<Utf8PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// Expected cluster id [default: the one in the state file].
    #[arg(long, value_name = "HEX", value_parser = parse_cluster_id)]
    pub(crate) cluster_id: Option<ClusterId>,
    /// Output format of the verdicts.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people to read.
    Text,
    /// One JSON document, for programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MirrorCommand {
    /// Fill a folder with all files of a Kubernetes version, each checked against its SHA-256. Continues an interrupted run,
    /// and replaces no file.
    Create {
        /// The folder to fill.
        #[arg(value_parser = path())]
        folder: Utf8PathBuf,
        /// Mirror to copy from: a folder or an http(s) address.
        #[arg(long, value_name = "DIR|URL", required_unless_present = "list")]
        from: Option<MirrorSource>,
        /// Digest of that mirror's components.json. Required for an http(s) address.
        #[arg(long, value_name = "sha256:HEX", value_parser = digest::oci::parse)]
        digest: Option<Digest>,
        /// Component list (like components.json) whose files are fetched from their own addresses.
        #[arg(long, value_name = "FILE", value_parser = path())]
        list: Option<Utf8PathBuf>,
    },
}

/// Paths are written into files, which are text.
fn path() -> impl TypedValueParser<Value = Utf8PathBuf> {
    NonEmptyStringValueParser::new().map(Utf8PathBuf::from)
}

fn parse_cluster_name(text: &str) -> Result<String, ClusterNameError> {
    check_cluster_name(text.to_owned())
}

fn parse_cluster_id(text: &str) -> Result<ClusterId, String> {
    let mut id = [0; 32];
    hex::decode_to_slice(text, &mut id).map_err(|_| "a cluster id has 64 hex digits".to_owned())?;
    Ok(ClusterId::new(id))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }
}
