//! Archives of components. They are pinned by hash, but whoever made the list may have pinned a hostile one.
//!
//! The input is the tar file itself, without the compression around it.

#![no_main]

#[allow(dead_code, reason = "a module of the crate, which does not offer it to others")]
#[path = "../../crates/component-installer/src/place.rs"]
mod place;
#[path = "../../crates/component-installer/src/unpack.rs"]
mod unpack;

use std::fs::{self, File};
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|tar: &[u8]| {
    let folder = tempfile::tempdir().expect("the temporary folder can be written to");
    let archive = folder.path().join("archive.tgz");
    let mut file = GzEncoder::new(File::create(&archive).expect("it is ours"), Compression::none());
    file.write_all(tar)
        .and_then(|()| file.finish().map(drop))
        .expect("it is ours");
    let _ = unpack::unpack(&archive, &folder.path().join("inside"));
    for entry in fs::read_dir(folder.path()).expect("it is ours") {
        let name = entry.expect("it is ours").file_name();
        assert!(
            name == "archive.tgz" || name == "inside",
            "{name:?} was written outside"
        );
    }
});
