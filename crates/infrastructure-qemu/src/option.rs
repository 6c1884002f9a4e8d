//! Values of QEMU's options.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A comma ends the value of an option unless it is doubled.
pub(crate) fn option_value(value: &OsStr) -> OsString {
    let doubled: Vec<u8> = value
        .as_bytes()
        .iter()
        .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }))
        .collect();
    OsString::from_vec(doubled)
}
