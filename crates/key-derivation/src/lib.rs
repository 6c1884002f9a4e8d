//! Derives every key of a cluster from the MasterSecret.
//!
//! There is one KDF, HKDF-SHA256 (RFC 5869), and one place that spells its labels: [`Label`]. Nothing derived is stored.
//! Epoch 0 is the formula of the Go Constellation, so that its volumes and disks open; the key of a state disk of ours is bound to its machine too. Later epochs put their number into
//! the label, so that keys can be rotated.
//!
//! This crate does no I/O and keeps no key longer than its caller does.

mod kek;
mod label;
mod master_secret;

pub use kek::{DeriveKeyError, Kek, cluster_id};
pub use label::{DiskOwner, Epoch, Label};
pub use master_secret::{MasterSecret, ParseMasterSecretError};
