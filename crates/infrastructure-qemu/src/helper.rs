//! What the program does for this provider in processes of their own: `constellation internal ...`.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use clap::Parser;

use crate::folder::RunFolder;
use crate::metadata::{MetadataError, serve};
use crate::process::exec_recorded;

/// Internal commands with which this program starts itself.
#[derive(Debug, Parser)]
#[command(name = "constellation internal")]
pub enum HelperCommand {
    /// Write down who this process is, then become another program.
    Exec {
        /// Where to write it.
        record: PathBuf,
        /// What to become.
        program: OsString,
        /// Arguments of that program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Serve metadata and mirror of a run folder to its nodes.
    ServeMetadata {
        /// The run folder.
        folder: PathBuf,
    },
}

/// A helper did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The other program cannot be started.
    #[error("cannot execute {}", program.display())]
    Exec {
        /// The program as it was named.
        program: OsString,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The metadata cannot be served.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl HelperCommand {
    /// Parses the arguments of an internal command; `None` for an ordinary command line. Wrong usage ends the process, as clap
    /// does it.
    pub fn of(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let _program = arguments.next();
        (arguments.next()? == "internal")
            .then(|| Self::parse_from(std::iter::once("constellation internal".into()).chain(arguments)))
    }

    /// Runs the internal command. Returns only on failure.
    ///
    /// # Errors
    /// When the program cannot be started, or the metadata cannot be served.
    pub async fn run(self) -> Result<Infallible, HelperError> {
        match self {
            Self::Exec {
                record,
                program,
                arguments,
            } => {
                let source = exec_recorded(&record, &program, &arguments);
                Err(HelperError::Exec { program, source })
            }
            Self::ServeMetadata { folder } => Ok(serve(RunFolder::new(folder)).await?),
        }
    }
}
