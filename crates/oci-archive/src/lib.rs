//! Container images as OCI archives (OCI image layout 1.1 in one tar file), made from files of the host.
//!
//! - Same inputs, same bytes: entries are sorted, times and owners are zero, JSON keys have one order.
//! - An image never is in memory as a whole; layers go through a temporary file beside the archive.
//! - `ctr --namespace k8s.io images import FILE` gives the image exactly the name it was written with.
//!
//! Nothing is pulled, pushed or read back here.

mod archive;
mod digest;
mod image;
mod layer;
mod name;

pub use archive::{WriteArchiveError, write_archive};
pub use digest::Digest;
pub use image::{Compression, Image};
pub use layer::{Capability, Content, Layer, LayerError};
pub use name::{ImageName, ParseImageNameError};
