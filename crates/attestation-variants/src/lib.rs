//! What stands behind each variant, and what is special about it.
//!
//! A technology crate knows no platform; a platform's quirk lives here, next to its reason.

pub mod qemu_vtpm;
