//! The kernel command line. It is measured, but read before anybody has appraised the measurement.

#![no_main]

#[allow(dead_code, reason = "a module of a program, which is not a library")]
#[path = "../../apps/node-init/src/command_line.rs"]
mod command_line;

use command_line::Root;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    if let Ok(root) = Root::parse(line) {
        let (hash, salt) = (hex::encode(root.hash), hex::encode(root.salt));
        let line = line.to_ascii_lowercase();
        assert!(line.contains(&hash) && line.contains(&salt) && root.blocks > 0);
    }
});
