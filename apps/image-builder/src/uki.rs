//! The unified kernel image: kernel, initramfs and command line in one measured UEFI program.

use std::path::Path;

use anyhow::Result;

use crate::kernel::Kernel;
use crate::tools::{Tools, run};

const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";

pub(crate) fn build(kernel: &Kernel, initramfs: &Path, command_line: &str, tools: &Tools, output: &Path) -> Result<()> {
    let mut ukify = tools.python("usr/bin/ukify");
    ukify
        .arg("build")
        .arg(format!("--linux={}", kernel.image().display()))
        .arg(format!("--initrd={}", initramfs.display()))
        .arg(format!("--cmdline={command_line}"))
        .arg(format!("--uname={}", kernel.release()))
        .arg("--os-release=")
        .arg("--efi-arch=x64")
        .arg(format!("--stub={}", tools.root().join(STUB).display()))
        .arg(format!("--output={}", output.display()));
    run(&mut ukify).map(drop)
}
