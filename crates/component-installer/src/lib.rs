//! Brings the programs and images of a Kubernetes version onto a node.
//!
//! # Invariants
//!
//! - Nothing is installed before everything was fetched and had its hash: a wrong component leaves the node as it was.
//! - A file appears under its name complete or not at all.
//! - An archive writes files and folders below its own folder, never links, and never more than a bound.
//!
//! Installing can be repeated at any time: what was fetched and what is installed is recognised by its hash.
//!
//! What this crate does not do: it does not decide which components; whoever asks has pinned their hashes.

mod fetch;
mod images;
mod install;
mod place;
mod prefetch;
mod source;
mod unpack;

pub use fetch::FetchError;
pub use images::{ImportError, import_images};
pub use install::{InstallError, Installer};
pub use prefetch::PrefetchError;
pub use source::{Mirror, ParseMirrorAddressError};
pub use unpack::UnpackError;
