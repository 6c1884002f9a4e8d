//! Container images of our services, which go into the node image.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cluster_types::Service;
use oci_archive::{Compression, Content, Image, Layer, write_archive};

use crate::folders;

/// Writes one OCI archive for each service: its static program and nothing else.
pub(crate) fn write(programs: &Path, folder: &Path) -> Result<()> {
    folders::empty(folder)?;
    for service in Service::ALL {
        let program = programs.join(service.name());
        let entrypoint = format!("/{}", service.name());
        let mut layer = Layer::new();
        layer.file(&entrypoint, 0o555, Content::HostFile(program))?;
        let mut image = Image::new(service.image_name().parse()?, vec![layer], &[&entrypoint]);
        // The node image is compressed as a whole.
        image.compression = Compression::None;
        write_archive(&image, &archive(folder, service))?;
    }
    Ok(())
}

fn archive(folder: &Path, service: Service) -> PathBuf {
    folder.join(format!("{}.oci.tar", service.name()))
}
