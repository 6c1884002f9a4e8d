use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use attestation::{AppraisalError, MeasuringAttester, Variants};
use cluster_types::Variant;
use digest::Digest;
use measurements::ReferenceValues;
use tempfile::TempDir;
use test_variant::{KeyAttester, KeyFile, KeyReferences, NotAuthentic, TestKeyVariants, VARIANT};

use crate::{Machine, Technology};

/// Machines with a key in a file, which no release accepts.
pub const SOFTWARE_KEY: &dyn Technology = &KeyTechnology;

const IMAGE: Digest = Digest::new([1; 32]);
const HOST: &str = "here";

struct KeyTechnology;

struct KeyMachine {
    file: KeyFile,
    folder: TempDir,
}

impl Technology for KeyTechnology {
    fn variant(&self) -> Variant {
        VARIANT
    }

    fn variants(&self) -> &'static dyn Variants {
        &TestKeyVariants
    }

    fn is_released(&self) -> bool {
        false
    }

    fn image(&self) -> ReferenceValues {
        ReferenceValues::new(VARIANT, "image", &KeyReferences::new(IMAGE, HOST))
    }

    fn power_on(&self) -> Result<Box<dyn Machine>> {
        let folder = TempDir::with_prefix("key-")?;
        let file = KeyFile::create(&path(&folder), IMAGE, HOST)?;
        Ok(Box::new(KeyMachine { file, folder }))
    }

    fn is_bound_to_something_else(&self, error: &AppraisalError) -> bool {
        let AppraisalError::NotAuthentic { source, .. } = error else {
            return false;
        };
        matches!(source.downcast_ref(), Some(NotAuthentic::Binding { .. }))
    }
}

impl Machine for KeyMachine {
    fn emulator(&self) -> PathBuf {
        path(&self.folder)
    }

    fn attester(&self) -> Result<Arc<dyn MeasuringAttester>> {
        Ok(Arc::new(KeyAttester::new(self.file.clone())?))
    }

    fn change_image(&self) -> Result<()> {
        Ok(self.file.set_image(Digest::new([9; 32]))?)
    }

    fn change_host(&self) -> Result<()> {
        Ok(self.file.set_host("there")?)
    }
}

fn path(folder: &TempDir) -> PathBuf {
    folder.path().join("key")
}
