//! Brings the programs and images of a Kubernetes version onto a node.
//!
//! # Invariants
//!
//! - Nothing is installed before everything has been fetched and checked: a wrong component leaves the node as it was.
//! - A file appears under its name either complete or not at all.
//! - An archive writes only files and folders, only below its own folder, and only up to a limit.
//!
//! Installing can be repeated at any time: fetched and installed files are recognised by their hash.
//!
//! What this crate does not do: it does not decide which components to install; the caller has pinned their hashes.

mod fetch;
mod images;
mod install;
mod place;
mod prefetch;
mod source;
mod unpack;

pub use images::{ImportError, import_images};
pub use install::{InstallError, Installer};
pub use prefetch::PrefetchError;
pub use source::{ComponentMirror, ParseMirrorAddressError};
pub use unpack::UnpackError;
