use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use attestation::{AttesterSource, MeasuringAttester, Variants};

/// What a service attests with.
#[derive(Clone, Debug, clap::Args)]
pub struct AttesterArgs {
    /// Attest with what stands in for a device here, such as the socket of a software TPM, instead of this machine's device.
    #[arg(long, hide = true)]
    emulator: Option<PathBuf>,
}

impl AttesterArgs {
    /// Sets the device up.
    ///
    /// # Errors
    /// When there is none, or it fails.
    pub fn set_up(self, variants: &dyn Variants) -> Result<Arc<dyn MeasuringAttester>> {
        let (source, context) = match self.emulator {
            None => (AttesterSource::ThisMachine, "this machine cannot attest".to_owned()),
            Some(path) => {
                let context = format!("--emulator: cannot attest with {}", path.display());
                (AttesterSource::Emulator(path), context)
            }
        };
        variants.attester(&source).context(context)
    }
}
