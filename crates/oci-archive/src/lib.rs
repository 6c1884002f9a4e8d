//! Writes container images as OCI archives (OCI image layout 1.1 in one tar file), from files of the host.
//!
//! - The same inputs give the same bytes: entries are sorted, times and owners are zero, JSON keys have a fixed order.
//! - An image is never in memory as a whole: layers go through a temporary file beside the archive.
//! - `ctr --namespace k8s.io images import FILE` gives the image exactly the name it was written with.
//!
//! What this crate does not do: it does not pull, push or read images.

mod archive;
mod image;
mod layer;
mod name;

pub use archive::{WriteArchiveError, write_archive};
pub use image::{Compression, Image};
pub use layer::{Capability, Content, Layer, LayerError};
pub use name::{ImageName, ParseImageNameError};
